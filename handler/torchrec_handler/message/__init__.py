"""TorchRec's request and answer as protobuf, generated from `predictor.proto`."""
