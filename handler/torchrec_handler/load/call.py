"""How a module's methods are called, and what they give brought to the host.

Without gradients, and in inference mode where a module bears it. What is made in inference mode
cannot be given to autograd. TorchScript does that whenever it was warmed up with gradients, as
TorchRec's own DLRM factory does it, and so does a model that differentiates something itself. Those
are called under `no_grad`, which costs a little more.

Letters in shapes: B rows, F features, D width.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar
from weakref import WeakSet

import torch

from torchrec_handler.errors import PredictError

T = TypeVar("T")

logger = logging.getLogger(__name__)

HALVES = (torch.float16, torch.bfloat16)

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


def call_method(module: torch.nn.Module, qualname: str, /, *arguments: Any, **named: Any) -> Any:
    """Call a method of a module that is ready to serve; what it raises passes through."""
    with no_gradients(module):
        return getattr(module, qualname)(*arguments, **named)


def call_observed(module: torch.nn.Module, qualname: str, *arguments: Any) -> Any:
    """Call a method while loading; where only inference mode makes it raise, leave that for good.

    Raises:
        Exception: what the method raises in either mode.
    """
    try:
        return call_method(module, qualname, *arguments)
    except RuntimeError as error:
        if module in _outside_inference_mode:
            raise
        try:
            with torch.no_grad():
                result = getattr(module, qualname)(*arguments)
        except Exception:  # noqa: BLE001  it is not inference mode that makes it raise
            raise error from error.__cause__
        logger.info("%s raises in inference mode, called under no_grad: %s", qualname, error)
        _outside_inference_mode.add(module)
        return result


def call_recorded(
    module: torch.nn.Module,
    qualname: str,
    inputs: Mapping[str, torch.Tensor],
    result_metadata: str,
    device: torch.device,
) -> dict[str, tuple[torch.Tensor, ...]]:
    """Call a method while loading, with inputs as a sample holds them: of embeddings [F, B, D].

    Returns:
        Output name -> its tensors, as `read_result` and `to_host` give them.

    Raises:
        PredictError: the result is not what `result_metadata` promises. What the method itself
            raises passes through.
    """
    placed = {name: value.to(device) for name, value in inputs.items()}
    batch: dict[str, Any] = {
        name: list(value.unbind(0)) if value.dim() == 3 else value for name, value in placed.items()
    }
    return read_result(call_observed(module, qualname, batch), qualname, result_metadata, to_host)


def read_result(
    result: Any, qualname: str, result_metadata: str, bring: Callable[[torch.Tensor], T]
) -> dict[str, tuple[T, ...]]:
    """Read the result of a method that takes the batched input.

    Args:
        result: what the method gave.
        qualname: of the method.
        result_metadata: one of TorchRec's result types.
        bring: what each tensor goes through: `to_host`, or more.

    Returns:
        Output name -> its tensors: one for dict_of_tensor, value and mask for
        dict_with_mask_tensor.

    Raises:
        PredictError: the result is not what `result_metadata` promises.
    """
    if not isinstance(result, Mapping):
        message = (
            f"{qualname}: returned {type(result).__name__}, expected a dict ({result_metadata})"
        )
        raise PredictError(message)
    return {
        str(name): tuple(
            map(bring, _tensors(f"{qualname}: output {name!r}", value, result_metadata))
        )
        for name, value in result.items()
    }


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU; half precision as float32, which JSON can hold."""
    host = tensor.detach().cpu()
    return host.float() if host.dtype in HALVES else host


def said(error: Exception) -> str:
    """What a call raised, as the rest of a sentence; a result of another form is named itself."""
    return (
        str(error) if isinstance(error, PredictError) else f"raised {type(error).__name__}: {error}"
    )


def _tensors(where: str, value: Any, result_metadata: str) -> tuple[torch.Tensor, ...]:
    if result_metadata == "dict_of_tensor":
        if isinstance(value, torch.Tensor):
            return (_writable(where, value),)
        expected = "a tensor"
    else:
        expected = "a tuple of tensors"
        pair = result_metadata == "dict_with_mask_tensor"
        if pair:
            expected = "a tuple of a value tensor and a mask tensor"
        if (
            isinstance(value, tuple | list)
            and all(isinstance(part, torch.Tensor) for part in value)
            and (not pair or len(value) == 2)
        ):
            return tuple(_writable(where, part) for part in value)
    message = f"{where} is {type(value).__name__}, expected {expected} ({result_metadata})"
    raise PredictError(message)


def _writable(where: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex() or tensor.layout is not torch.strided:
        kind = str(tensor.dtype if tensor.is_complex() else tensor.layout).removeprefix("torch.")
        message = f"{where} is {kind}, expected a dense tensor of real numbers"
        raise PredictError(message)
    return tensor


def _is_script(module: torch.nn.Module) -> bool:
    kinds = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    return isinstance(module, kinds) or any(
        isinstance(value, kinds) for value in vars(module).values()
    )
