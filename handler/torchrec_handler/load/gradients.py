"""How a module's methods are called without gradients: in inference mode, where they bear it.

What is made in inference mode cannot be given to autograd. TorchScript does that whenever it was
warmed up with gradients, as TorchRec's own DLRM factory does it, and so does a model that
differentiates something itself. Those are called under `no_grad`, which costs a little more.
"""

import logging
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import torch

logger = logging.getLogger(__name__)

_outside_inference_mode: WeakSet[torch.nn.Module] = WeakSet()


def no_gradients(module: torch.nn.Module) -> AbstractContextManager[Any]:
    """The mode to call a module's methods in."""
    return torch.no_grad() if module in _outside_inference_mode else torch.inference_mode()


def look_for_scripts(module: torch.nn.Module) -> None:
    """Let a module that holds TorchScript be called outside of inference mode.

    What a script does to its inputs depends on the calls before it, so no single call shows it.
    """
    if any(map(_is_script, module.modules())):
        _outside_inference_mode.add(module)


def call_observed(module: torch.nn.Module, qualname: str, *arguments: Any) -> Any:
    """Call a method while loading; where only inference mode makes it raise, leave that for good.

    Raises:
        Exception: what the method raises in either mode.
    """
    method = getattr(module, qualname)
    try:
        with no_gradients(module):
            return method(*arguments)
    except RuntimeError as error:
        if module in _outside_inference_mode:
            raise
        try:
            with torch.no_grad():
                result = method(*arguments)
        except Exception:  # noqa: BLE001  it is not inference mode that makes it raise
            raise error from error.__cause__
        logger.info("%s raises in inference mode, called under no_grad: %s", qualname, error)
        _outside_inference_mode.add(module)
        return result


def _is_script(module: torch.nn.Module) -> bool:
    kinds = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    return isinstance(module, kinds) or any(
        isinstance(value, kinds) for value in vars(module).values()
    )
