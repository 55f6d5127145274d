"""Seventh step of loading: fit the module and this process to the machine.

On the CPU kernels then take care of the dense part, unless that is float16.
"""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from torchrec.inference.modules import quantize_dense

from torchrec_handler.errors import OptionError
from torchrec_handler.load.call import look_for_scripts
from torchrec_handler.options import AUTO, Options
from torchrec_handler.tables.find import is_collection

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def lower(module: torch.nn.Module, options: Options, device: torch.device) -> None:
    """Set threads, evaluation mode, a `PredictModule`'s device and the dense data type.

    On the CPU bfloat16 and int8 are for kernels, which compute in them and keep the weights.

    A `PredictModule` without a device takes the current CUDA device at its first call, which
    raises on a machine without one (torchrec.inference.modules).

    Raises:
        OptionError: kernels are to compute in int8 on CUDA, or in what was decided for the CPU.
    """
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    elif options.kernel_dtype == "int8":
        of_dense = options.dense.dtype in {"int8", AUTO}
        option, expected = ("dense", "float32, float16") if of_dense else ("kernels", "float32")
        received = options.dense.dtype if of_dense else "int8"
        message = (
            f"torchrec.{option}.dtype: received {received!r} on {device}, expected {expected} or "
            f"bfloat16; {received} is for the CPU"
        )
        raise OptionError(message)
    module.eval()
    look_for_scripts(module)
    for found in module.modules():
        if hasattr(found, "predict_module") and getattr(found, "_device", device) is None:
            setattr(found, "_device", device)  # noqa: B010  PredictModule has no other way to set it
    stays = device.type == "cpu" and options.dense.dtype != "float16"
    dtype = torch.float32 if stays else DTYPES[options.dense.dtype]
    if dtype is torch.float32 and options.tables.output_dtype == "float32":
        return
    for part in _dense_parts(getattr(module, "predict_module", module)):
        _lower_part(part, dtype)


def _dense_parts(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The largest modules without an embedding collection inside.

    Position weights and managed collision are parts of their collections: they stay as they are.
    """
    for child in module.children():
        if not any(map(is_collection, child.modules())):
            yield child
        elif not is_collection(child):
            yield from _dense_parts(child)


def _lower_part(part: torch.nn.Module, dtype: torch.dtype) -> None:
    """Convert a dense module's weights now, and its inputs whenever it is called.

    What a lookup gives may be of another data type even where the weights stay as they are.
    TorchRec's `quantize_dense` converts all children of a predict module, float16 only, and their
    positional tensors; it is given one child at a time.
    """

    def cast(value: torch.Tensor) -> torch.Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    def cast_inputs(
        _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Also tensors in lists, and in KeyedTensors, which TorchRec registers with pytree.
        return (
            tuple(tree_map_only(torch.Tensor, cast, value) for value in args),
            {name: tree_map_only(torch.Tensor, cast, value) for name, value in kwargs.items()},
        )

    if dtype is torch.float16:
        quantize_dense(SimpleNamespace(predict_module=torch.nn.ModuleList([part])), dtype)
    elif dtype is torch.bfloat16:
        part.bfloat16()
    part.register_forward_pre_hook(cast_inputs, with_kwargs=True)
