"""The handler for plain torch-model-archiver, which takes a handler only as a file.

torch-model-archiver --serialized-file predict_factory.pt --handler predict_factory_handler.py …
"""

from torchrec_handler.front.torchserve.worker import TorchRecHandler


class PredictFactoryHandler(TorchRecHandler):
    """TorchServe wants exactly one class defined in this file."""
