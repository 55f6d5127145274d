"""The module that every manifest names; TorchServe wants exactly one class defined in it."""

from torchrec_handler.front.torchserve.worker import TorchRecHandler


class Handler(TorchRecHandler):
    """What TorchServe makes of an archive's handler."""
