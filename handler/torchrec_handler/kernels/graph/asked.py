"""What a model asks for that is another thing at each call, of which a graph would know one."""

import contextlib
import datetime as dt
import random
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch

from torchrec_handler.kernels.graph.sites import CannotCapture

CLOCKS = frozenset({time.time, time.time_ns, time.localtime, time.gmtime, time.strftime})
DATES = frozenset({"now", "utcnow", "today"})
OTHERS = ("logging", "warnings", "torch.", "torchrec.")
"""Modules of python and torch that ask for the time for themselves."""


class Asked:
    """Which modules asked for the time, or for random numbers of python's or numpy's."""

    def __init__(self) -> None:
        self._found: dict[torch.nn.Module | None, str] = {}
        """Module whose code was running, None for any -> what was called."""
        self._draws = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note it while models are called as they are."""
        before, drawn = sys.getprofile(), _numpys()
        sys.setprofile(self._note)
        try:
            yield
        finally:
            sys.setprofile(before)
        # Numpy's functions cannot be seen being called.
        self._draws = _numpys() != drawn

    def check(self, module: torch.nn.Module | None = None) -> None:
        """See that a module, or any at all, asked for nothing.

        Raises:
            CannotCapture: it did.
        """
        called = self._found.get(module, "numpy.random" if self._draws else None)
        if called:
            message = f"it calls {called}, which gives something else each time"
            raise CannotCapture(message)

    def _note(self, frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call" or not _changes(called):
            return
        if str(frame.f_globals.get("__name__")).startswith(OTHERS):
            return
        self._found.setdefault(None, called.__name__)
        running: FrameType | None = frame
        while running is not None:
            owner = running.f_locals.get("self")
            if isinstance(owner, torch.nn.Module):
                self._found.setdefault(owner, called.__name__)
            running = running.f_back


def _changes(called: Any) -> bool:
    owner = getattr(called, "__self__", None)
    if isinstance(owner, type) and issubclass(owner, dt.date):
        return called.__name__ in DATES
    return isinstance(owner, random.Random) or called in CLOCKS


def _numpys() -> tuple[bytes, int]:
    """Where numpy's global random numbers stand."""
    state: Any = np.random.get_state()  # noqa: NPY002
    return state[1].tobytes(), state[2]
