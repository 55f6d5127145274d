"""One step of serving, whose errors are answers."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from torchrec_handler.errors import OutOfMemory, PredictError, RequestError, Unusable
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.fatal import is_fatal

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_SAID = 16_384
"""Characters of a message: a model's own may hold the whole input."""

READING = "reading the request"


def attempt(where: str, step: Callable[..., T], *arguments: Any) -> T | RequestError:
    """Run a step; whatever it raises is given back as an error of the request.

    Without its traceback and causes, whose frames would keep a failed call's tensors alive.

    Raises:
        Unusable: it is an error of the process.
    """
    try:
        return step(*arguments)
    except Unusable:
        raise
    except RequestError as error:
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:
        logger.warning("%s raised", where, exc_info=True)
        if is_fatal(error):
            message = f"{where} raised {type(error).__name__}: {said(error)}"
            raise Unusable(message) from error
        if _is_out_of_memory(error):
            return OutOfMemory(f"{where}: out of memory; send fewer rows")
        return PredictError(f"{where} raised {type(error).__name__}: {said(error)}")


def _is_out_of_memory(error: Exception) -> bool:
    # torch has no type of its own for host memory.
    is_host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in said(error)
    return is_host or isinstance(error, MemoryError | torch.OutOfMemoryError)


def said(error: Exception) -> str:
    """An error's message as text that can be sent, whatever a model put into it."""
    try:
        return shortened(str(error), MOST_SAID).encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001  an exception's own __str__ may raise
        return "(a message that cannot be shown)"
