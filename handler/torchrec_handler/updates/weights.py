"""Dense weights that change: made ready by each worker beside its requests, and then put in place.

Those of a delta are laid beside the live copy, whole and numbered, so that a worker that begins
later needs no delta for them.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch
from safetensors.torch import load_file, save_file

T = TypeVar("T")

logger = logging.getLogger(__name__)

PREFIX = "dense-"


class Ready(NamedTuple, Generic[T]):
    """A model with some weights."""

    number: int
    model: T


class Weights(Generic[T]):
    """What a worker makes of the weights beside a live copy; number 0 are the archive's."""

    def __init__(
        self,
        folder: Path,
        own: Mapping[str, torch.Tensor],
        model: T,
        build: Callable[[Mapping[str, torch.Tensor]], T],
    ) -> None:
        """Begin with the archive's.

        Args:
            folder: of the live copy.
            own: the archive's weights.
            model: with these.
            build: makes another model, of other weights.
        """
        self._folder, self._own, self._build = folder, own, build
        self._lock = threading.Lock()
        self.ready = Ready(0, model)
        """The newest that was made."""

    def write(self, number: int, before: int, changed: Mapping[str, torch.Tensor]) -> None:
        """Lay weights beside the copy.

        Args:
            number: theirs.
            before: the number of those that are changed.
            changed: name -> tensor.
        """
        whole = {**self.read(before), **changed}
        made = self._path(number).with_suffix(".new")
        # Names of one tensor are told apart, as a delta may change one of them.
        save_file({name: value.clone().contiguous() for name, value in whole.items()}, made)
        made.rename(self._path(number))

    def make(self, number: int) -> None:
        """Make a model with these weights, if it is not ready.

        Raises:
            OSError: they are not there any more.
            LoadError: the model does not take them.
        """
        with self._lock:
            if self.ready.number != number:
                began = time.perf_counter()
                model = self._build(self.read(number))
                self.ready = Ready(number, model)
                logger.info("Weights %d: ready in %.2f s", number, time.perf_counter() - began)

    def read(self, number: int) -> Mapping[str, torch.Tensor]:
        """Weights by name.

        Raises:
            OSError: they are not there any more.
        """
        return load_file(self._path(number)) if number else self._own

    def are_there(self, number: int) -> bool:
        """Whether they lie beside the copy, or are the archive's."""
        return not number or self._path(number).exists()

    def keep(self, number: int) -> None:
        """Remove weights that came before these."""
        for path in self._folder.glob(f"{PREFIX}*"):
            found = path.stem.removeprefix(PREFIX)
            if found.isdigit() and int(found) < number:
                path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{number}.safetensors"
