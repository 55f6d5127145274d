"""The form that every kernel has: it is offered modules, and says what it makes of each.

A kernel is a file of this folder and an entry in `registry.KERNELS`, and nothing else. Modules are
known by their type's name, as `quantize` knows them. They, their weights and all they hold stay
where they are: what a kernel gives is another `forward`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torchrec.inference.modules import trim_torch_package_prefix_from_typename

from torchrec_handler.archive.format import Declined, Replaced, Report
from torchrec_handler.kernels.choice import Choice
from torchrec_handler.options import DenseDtype, KernelDtype
from torchrec_handler.tables.find import is_collection

__all__ = ["Declined", "Forward", "Kernel", "Replaced", "Report", "Target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a kernel computes on, and how."""

    device: torch.device
    """Of the module's weights and inputs."""
    dtype: KernelDtype
    """The least precise type that a kernel may compute in; what it gives is float32."""
    choice: Choice | None = None
    """By layer, where it was decided so; `dtype` is the least precise one of it."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """What a kernel computes instead of a module's own forward."""

    call: Callable[..., Any]
    """Takes and gives what the module's forward does."""
    dtype: DenseDtype | None = None
    """The least precise type that it computes in here; None: it gives bit for bit what it gave."""
    calls: tuple[str, ...] = ()
    """Paths inside the module of what `call` goes on calling as modules: of all in the module only
    these are offered to kernels still."""


class Kernel(Protocol):
    """A faster way to compute what some modules compute."""

    name: str
    """What `kernels.off` and the report call it."""

    def offer(self, module: torch.nn.Module, target: Target) -> Forward | str | None:
        """Look at a module, and change nothing in it.

        Args:
            module: in evaluation mode, with its weights.
            target: where it is going to be called.

        Returns:
            The new forward; why not, for a module that the kernel knows; None for any other.
        """


def typename(module: object) -> str:
    """The name of a module's type, whatever package it came out of."""
    name: str = trim_torch_package_prefix_from_typename(torch.typename(module))
    return name


def has_own_forward(module: torch.nn.Module) -> bool:
    """Whether somebody replaced the forward of this one module."""
    return "forward" in vars(module)


def touched(module: torch.nn.Module) -> str | None:
    """What somebody added to a part of a whole, so that it has to be called as it is."""
    if has_own_forward(module):
        return f"{type(module).__name__} {OWN_FORWARD}"
    if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001
        guarded = ", which may check rows that the model itself makes" * is_collection(module)
        return f"{type(module).__name__} has hooks{guarded}"
    return None


OWN_FORWARD = "has a forward of its own, which somebody gave to this one module"


def not_for(target: Target) -> str | None:
    """Why a kernel of the CPU cannot be used."""
    return None if target.device.type == "cpu" else f"is for the CPU, not for {target.device}"
