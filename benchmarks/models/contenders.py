"""The ways to compute a model that `benchmarks.dense` compares."""

import ctypes
import gc
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.models import Model
from benchmarks.models.inputs import draw, draw_request
from benchmarks.models.loading import load
from torchrec_handler.load.package import Package
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.predict import HostResult, predict
from torchrec_handler.serve.request import ValidRequest
from torchrec_handler.serve.validate import Validator
from torchrec_handler.tables.find import is_collection

STOCK = "stock"
"""Every forward is TorchRec's own."""
COMPILED = "torch.compile"
"""Of stock's module."""
COMPILED_AROUND = "torch.compile around the tables"
"""The same, told to leave TorchRec's collections alone."""
CONTENDERS: Mapping[str, Mapping[str, object]] = {
    STOCK: {"off": "all"},
    COMPILED: {"off": "all"},
    COMPILED_AROUND: {"off": "all"},
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "int8"},
}
"""Name -> `kernels` of its options."""
CANDIDATES = 1000
"""Of a ranking request."""
BATCHES = 4
"""Distinct batches of each size."""

Call = Callable[[], HostResult]


class Served(Engine):
    """An engine that is given what it would have read and checked."""

    def rank(self, request: ValidRequest) -> HostResult:
        """The scores of one request."""
        return self._call("forward", [request])


class Contender:
    """A loaded model."""

    def __init__(self, name: str, model: Model, package: Package) -> None:
        """Load it, and let it answer for the first time."""
        gc.collect()
        before = _bytes_in_use()
        options = Options.model_validate({"threads": 1, "kernels": CONTENDERS[name]})
        predictor, self.load_seconds = load(package, options)
        if name in {COMPILED, COMPILED_AROUND}:
            torch.compiler.reset()
            if name == COMPILED_AROUND:
                _leave_alone(
                    module for module in predictor.module.modules() if is_collection(module)
                )
            compiled: Any = torch.compile(predictor.module, dynamic=True)
            predictor = replace(predictor, module=compiled)
        self._model, self._predictor, self._options = model, predictor, options
        began = time.perf_counter()
        for rows in (16, 128):
            self._batches(rows)[0]()
        self.first_seconds = time.perf_counter() - began
        gc.collect()
        self.megabytes = (_bytes_in_use() - before) / 1e6

    def cases(self, rows: Sequence[int]) -> dict[str, Sequence[Call]]:
        """What is timed, by its title: batches of so many rows, and ranking requests."""
        return {
            **{f"{size:,}": self._batches(size) for size in rows},
            f"{CANDIDATES:,} ranked": self._requests(),
        }

    def _batches(self, rows: int) -> list[Call]:
        module, metadata = self._predictor.module, self._predictor.result_metadata
        return [
            partial(predict, module, "forward", dict(draw(self._model, rows, seed)), metadata)
            for seed in range(BATCHES)
        ]

    def _requests(self) -> list[Call]:
        served = Served(self._model.name, self._predictor, self._options)
        check = Validator(self._predictor.signature, self._options)
        return [
            partial(served.rank, check(draw_request(self._model, CANDIDATES, seed)))
            for seed in range(BATCHES)
        ]


def _leave_alone(modules: Iterable[torch.nn.Module]) -> None:
    """Have `torch.compile` call them as they are."""
    disable: Any = torch.compiler.disable
    for module in modules:
        setattr(module, "forward", disable(module.forward))  # noqa: B010  not its class's


class _MallInfo2(ctypes.Structure):
    """Of glibc's malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def _bytes_in_use() -> int:
    """What malloc gave and did not get back; what it keeps for later is not the contenders'."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)
