"""What is changed in the process while a method is followed, and put back behind it."""

import builtins
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from inspect import getattr_static
from typing import Any

import torch
from torch.fx import config
from torch.nn.modules import transformer

CHATTY = ("torch.fx.experimental.symbolic_shapes", "torch.fx._symbolic_trace")
"""Loggers of torch that tell of the way."""


@contextlib.contextmanager
def masks_as_they_are() -> Iterator[None]:
    """Keep nn.TransformerEncoder from looking into a mask, whose numbers nobody knows yet.

    What it would find out only tells attention that the mask which it is given is causal.
    """
    detect = transformer._detect_is_causal_mask  # noqa: SLF001

    def told(
        mask: torch.Tensor | None,  # noqa: ARG001
        is_causal: bool | None = None,  # noqa: FBT001
        size: int | None = None,  # noqa: ARG001
    ) -> bool:
        return bool(is_causal)

    transformer._detect_is_causal_mask = told  # noqa: SLF001
    try:
        yield
    finally:
        transformer._detect_is_causal_mask = detect  # noqa: SLF001


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep to ourselves what torch tells of the way; what it ends at is told.

    A stack trace for every node would take a sixth of the time.
    """
    emits_none, config.do_not_emit_stack_traces = config.do_not_emit_stack_traces, True
    loggers = [logging.getLogger(name) for name in CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        config.do_not_emit_stack_traces = emits_none
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def open_lengths(module: torch.nn.Module) -> Iterator[None]:
    """Let `len` of a tensor be left open; python's own can only give a number.

    Modules that came out of a torch.package have builtins of their own.
    """
    own = vars(builtins)
    of_parts = [
        # Static, as a scripted module's forward is there for objects alone.
        getattr(getattr_static(type(part), "forward"), "__globals__", {}).get("__builtins__")
        for part in module.modules()
    ]
    # Everybody's `len` is slower while that lasts, so it is left alone where it can be.
    found = [names for names in of_parts if isinstance(names, dict) and names is not own] or [own]
    known = {id(names): names for names in found}
    plain = len

    def open_len(given: Any) -> Any:
        return given.shape[0] if isinstance(given, torch.Tensor) else plain(given)

    for names in known.values():
        names["len"] = open_len
    try:
        yield
    finally:
        for names in known.values():
            names["len"] = plain


@contextlib.contextmanager
def as_if_exporting() -> Iterator[None]:
    """Let models and TorchRec see that it is torch.export, for which some do something else."""
    names = ("_is_compiling_flag", "_is_exporting_flag")
    before = {name: getattr(torch.compiler, name) for name in names}
    for name in names:
        setattr(torch.compiler, name, True)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.compiler, name, value)
