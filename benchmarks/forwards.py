"""The contenders of `benchmarks.in_process`, each in a process of its own, and what they time.

Shapes: B rows, F features, N ids.
"""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torchrec.inference.modules import quantize_inference_model

from benchmarks.bodies import COLUMNS, PROTOBUF, Format
from benchmarks.criteo import CriteoConfig, CriteoPredictModule
from benchmarks.peers.stock import Inputs
from torchrec_handler.load.loader import load
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
from torchrec_handler.serve.batch import combine
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.predict import predict
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.serve.split import Splitter, answer
from torchrec_handler.serve.validate import Validator
from torchrec_handler.tables.once import look_up_once

T = TypeVar("T")

STOCK = "stock"
"""TorchRec's quantized module; every other contender is the served one with that `dense.dtype`."""
BATCHES = 8
"""Distinct batches of each size."""
BODIES: Mapping[str, Format] = {"json columns": COLUMNS, "protobuf": PROTOBUF}


@dataclass(frozen=True, kw_only=True)
class Material:
    """What contenders load."""

    archive: Path
    """Folder of an archive."""
    checkpoint: Path
    config: CriteoConfig


class Contender:
    """A contender's process. It sleeps unless it is asked something."""

    def __init__(self, name: str, material: Material, threads: int) -> None:
        """Start it; it loads while others do."""
        self.name = name
        # Not forked: each has its own threads, its own malloc and, but for mapped tables, memory.
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(other, name, material, threads), daemon=True
        )
        self._process.start()
        other.close()

    def scores(self, rows: int) -> list[float]:
        """[B] of the first batch of that size."""
        found: list[float] = self._ask("scores", rows)
        return found

    def forward(self, rows: int, calls: int) -> list[float]:
        """Microseconds of each forward call."""
        spent: list[float] = self._ask("forward", rows, calls)
        return spent

    def stages(self, rows: int, calls: int, body: str) -> dict[str, list[float]]:
        """Microseconds of each stage of serving one request."""
        spent: dict[str, list[float]] = self._ask("stages", rows, calls, body)
        return spent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)

    def _ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        return self._pipe.recv()


def _answer(pipe: Connection, name: str, material: Material, threads: int) -> None:
    """The process: answer questions until the other side has gone."""
    torch.set_num_threads(threads)
    forward = _Stock(material) if name == STOCK else _Served(material, name, threads)
    while True:
        try:
            question, *arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(forward, question)(*arguments))


class _Forward:
    """Times a predict module."""

    module: torch.nn.Module

    def __init__(self, material: Material) -> None:
        self._rows_per_table = material.config.rows

    def scores(self, rows: int) -> list[float]:
        found: list[float] = self.module(_tensors(self.inputs(rows)[0]))["default"].tolist()
        return found

    def forward(self, rows: int, calls: int) -> list[float]:
        batches = list(map(_tensors, self.inputs(rows)))
        spent = []
        # The first one finds its weights in no cache: others had the processor before.
        for number in range(calls + 1):
            batch = batches[number % BATCHES]
            began = time.perf_counter()
            self.module(batch)
            spent.append((time.perf_counter() - began) * 1e6)
        return spent[1:]

    def inputs(self, rows: int) -> list[Inputs]:
        """The same for every contender: one id a feature, anywhere in its table."""
        random = np.random.default_rng(rows)
        return [
            Inputs(
                dense=random.standard_normal((rows, 13), dtype=np.float32),
                lengths=np.ones(len(self._rows_per_table) * rows, dtype=np.int32),
                values=np.concatenate(
                    [
                        random.integers(0, most, rows, dtype=np.int32)
                        for most in self._rows_per_table
                    ]
                ),
            )
            for _ in range(BATCHES)
        ]


class _Stock(_Forward):
    """What TorchRec gives for inference, unsharded as there is one device."""

    def __init__(self, material: Material) -> None:
        super().__init__(material)
        self.module = CriteoPredictModule(material.config)
        weights = torch.load(material.checkpoint, weights_only=True)
        # The tables' rows overlap in the file; the quantization operator needs them whole.
        whole = {name: value.contiguous() for name, value in weights.items()}
        self.module.predict_module.load_state_dict(whole, assign=True)
        quantize_inference_model(self.module.eval())


class _Served(_Forward):
    """What this project makes of it."""

    def __init__(self, material: Material, dtype: str, threads: int) -> None:
        super().__init__(material)
        self._options = Options.model_validate(
            {"dense": {"dtype": dtype}, "threads": threads, "self_test": False}
        )
        become_worker(self._options, torch.device("cpu"))
        self._predictor = load(material.archive, self._options, torch.device("cpu"))
        self.module = self._predictor.module
        self._codecs = Codecs("criteo", self._predictor.signature, self._options.limits)
        self._validator = Validator(self._predictor.signature, self._options)

    def stages(self, rows: int, calls: int, body: str) -> dict[str, list[float]]:
        written = list(map(BODIES[body].write, self.inputs(rows)))
        spent: dict[str, list[float]] = {}

        def step(name: str, run: Callable[..., T], *arguments: Any) -> T:
            began = time.perf_counter()
            result = run(*arguments)
            spent.setdefault(name, []).append((time.perf_counter() - began) * 1e6)
            return result

        predictor, metadata = self._predictor, self._predictor.result_metadata
        splitter = Splitter((predictor.signature.splits or {})["forward"], metadata)
        for number in range(calls + 1):
            one = written[number % BATCHES]
            raw = RawRequest(body=one.content, content_type=one.headers["Content-Type"])
            columns, reply = step("decode", self._codecs.decode, raw)
            valid = step("validate", self._validator, columns)
            batch = step("batch", combine, [valid], predictor.batching, predictor.device)
            with look_up_once(batch.shared):
                result = step(
                    "predict", predict, predictor.module, "forward", batch.inputs, metadata
                )
            (part,) = step("split", splitter.split, result, [valid])
            step("encode", self._codecs.encode, answer(part, metadata), reply)
        return {name: times[1:] for name, times in spent.items()}


def _tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {
        "float_features": torch.from_numpy(inputs.dense),
        "id_list_features.lengths": torch.from_numpy(inputs.lengths),
        "id_list_features.values": torch.from_numpy(inputs.values),
    }
