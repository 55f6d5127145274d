"""A first factory, drawn up from a model or from a checkpoint, for `torchrec-archiver init`."""
