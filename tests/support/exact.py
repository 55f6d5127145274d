"""A model whose answers tell every input number, its row and its place, and requests for it.

All arithmetic is on small whole numbers in float64, so equal means equal, bit for bit.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torchrec.inference.modules import BatchingMetadata, QualNameMetadata

from torchrec_handler.archive.format import Count, InputSignature, OutputSplit, Signature
from torchrec_handler.load.states import Predictor
from torchrec_handler.serve.request import Sparse, ValidRequest

CPU = torch.device("cpu")

DENSE = InputSignature(
    name="float_features", type="dense", num_features=3, features=("age", "price", "hour")
)
SPARSE = InputSignature(
    name="id_list_features",
    type="sparse",
    num_features=3,
    features=("user", "movie", "genres"),
    ids_below=(50, 40, 10),
)
WEIGHTED = InputSignature(
    name="id_score_list_features",
    type="weighted_sparse",
    num_features=2,
    features=("tags", "clicks"),
    ids_below=(30, 20),
)
EMBEDDING = InputSignature(
    name="embedding_features",
    type="embedding",
    num_features=2,
    features=("image", "title"),
    width=4,
)
INPUTS = (DENSE, SPARSE, WEIGHTED, EMBEDDING)

RESULT_TYPES = ("dict_of_tensor", "dict_of_tensors", "dict_with_mask_tensor")

PRIMES = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0], dtype=torch.float64)

EXAMPLES = int(os.environ.get("EXAMPLES", "50"))
"""How many examples a property is tried on; `make test` tries twenty times as many."""


def examples(share: float = 1.0) -> settings:
    """The same examples on every run, so that a red run is a change's own.

    `share` of them where one takes long.
    """
    return settings(
        max_examples=int(EXAMPLES * share),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


class Exact(torch.nn.Module):
    """One number a row that depends on everything in the row and on nothing else."""

    def __init__(self, inputs: Sequence[InputSignature], result_metadata: str) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.result_metadata = result_metadata

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.result(self.scores(batch))

    def negative(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return self.result(-self.scores(batch))

    def scores(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """[B] float64"""
        found = torch.stack([_score(entry, batch) for entry in self.inputs])
        return PRIMES[: len(found)] @ found

    def result(self, scores: torch.Tensor) -> dict[str, Any]:
        """One value a row, three a row in one axis, and two a row in a second axis."""
        flat = torch.stack([scores, scores + 1, scores * 2], dim=1).reshape(-1)
        pair = torch.stack([scores, -scores], dim=1)
        if self.result_metadata == "dict_of_tensor":
            return {"default": scores, "flat": flat, "pair": pair}
        if self.result_metadata == "dict_of_tensors":
            return {"default": (scores, flat), "pair": [pair, scores, flat]}
        mask = torch.tensor([True, False, True, True, False])
        return {"default": (scores, mask), "flat": (flat, ~mask), "pair": (pair, mask[:1])}


def _score(entry: InputSignature, batch: Mapping[str, Any]) -> torch.Tensor:
    features = entry.num_features or 0
    if entry.type == "dense":
        dense: torch.Tensor = batch[entry.name]
        return dense.double() @ PRIMES[:features]
    if entry.type == "embedding":
        block = torch.stack(batch[entry.name], dim=1).double()
        return (block @ PRIMES[: block.shape[2]]) @ PRIMES[:features]
    lengths: torch.Tensor = batch[f"{entry.name}.lengths"]
    values: torch.Tensor = batch[f"{entry.name}.values"]
    assert lengths.dtype == values.dtype == torch.int32
    bags = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = torch.cumsum(lengths, 0) - lengths
    places = torch.arange(len(values)) - starts[bags]
    terms = (values.double() + 1) * (places + 1)
    if entry.type == "weighted_sparse":
        terms *= batch[f"{entry.name}.weights"].double()
    sums = torch.zeros(len(lengths), dtype=torch.float64).index_add(0, bags, terms)
    return PRIMES[:features] @ (sums + lengths).reshape(features, -1)


def batching(*inputs: InputSignature) -> dict[str, BatchingMetadata]:
    """What a factory's `batching_metadata` says of them."""
    return {
        entry.name: BatchingMetadata(type=entry.type, device="cpu", pinned=[]) for entry in inputs
    }


ROWS = OutputSplit(counts=(Count(factor=1),), shape=())
FLAT = OutputSplit(counts=(Count(factor=3),), shape=())
PAIR = OutputSplit(counts=(Count(factor=1),), shape=(2,))
SPLITS: Mapping[str, Mapping[str, tuple[OutputSplit, ...]]] = {
    "dict_of_tensor": {"default": (ROWS,), "flat": (FLAT,), "pair": (PAIR,)},
    "dict_of_tensors": {"default": (ROWS, FLAT), "pair": (PAIR, ROWS, FLAT)},
    "dict_with_mask_tensor": {"default": (ROWS,), "flat": (FLAT,), "pair": (PAIR,)},
}
"""How what `Exact.result` gives is cut."""


def predictor(
    module: torch.nn.Module,
    *inputs: InputSignature,
    result_metadata: str = "dict_of_tensor",
    methods: Mapping[str, bool] | None = None,
) -> Predictor:
    """A module, ready to serve; `methods` are its qualnames and their need_preproc."""
    known = methods or {"forward": True}
    return Predictor(
        module=module,
        signature=Signature(
            inputs=inputs,
            methods=known,
            result_metadata=result_metadata,
            splits={name: SPLITS[result_metadata] for name, batched in known.items() if batched},
        ),
        batching=batching(*inputs),
        qualnames={name: QualNameMetadata(need_preproc=batched) for name, batched in known.items()},
        result_metadata=result_metadata,
        device=CPU,
        tables=None,
        plan=None,
    )


def _digits(draw: st.DrawFn, shape: tuple[int, ...], below: int) -> npt.NDArray[np.int32]:
    """Small whole numbers; one draw of bytes is much faster than one a number."""
    size = math.prod(shape)
    drawn = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    return (drawn % below).astype(np.int32).reshape(shape)


@st.composite
def valid_requests(draw: st.DrawFn, inputs: Sequence[InputSignature]) -> ValidRequest:
    """One valid request of one to four rows; many of its lists of ids are empty, or shared."""
    rows = draw(st.integers(1, 4))
    found: dict[str, Any] = {}
    for entry in inputs:
        features = entry.num_features or 0
        if entry.type == "dense":
            found[entry.name] = _digits(draw, (rows, features), 10).astype(np.float32)
        elif entry.type == "embedding":
            shape = (rows, features, entry.width or 0)
            found[entry.name] = _digits(draw, shape, 10).astype(np.float32)
        else:
            lengths = _digits(draw, (features, rows), 4)
            shared = _digits(draw, (features,), 2) * lengths[:, 0] > 0
            lengths[shared, 1:] = 0
            count = (int(lengths.sum()),)
            values = _digits(draw, count, 10)
            weights = None
            if entry.type == "weighted_sparse":
                weights = _digits(draw, count, 10).astype(np.float32)
            found[entry.name] = Sparse(
                lengths=lengths,
                values=values,
                weights=weights,
                shared=shared if rows > 1 and shared.any() else None,
            )
    return ValidRequest(rows=rows, inputs=found)


def lists_of_requests(*inputs: InputSignature) -> st.SearchStrategy[list[ValidRequest]]:
    """What arrives at once."""
    return st.lists(valid_requests(inputs), min_size=1, max_size=5)
