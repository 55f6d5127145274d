"""Small models behind an engine, and requests whose rows share inputs, beside the same in full."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from tests.support.factories.kinds_base import table
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.states import Made, Predictor
from torchrec_handler.load.steps import lay_out, load_weights, make_ready
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.simple import (
    Batch,
    Input,
    SimpleFactory,
    dense,
    embedding,
    sparse,
    weighted_sparse,
)
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.store import TableStore, layout

CPU = torch.device("cpu")
IDS, WIDTH = 20, 4
INPUTS: Mapping[str, Input] = {
    "user": sparse("u", "v"),
    "item": sparse("i", "j"),
    "user_dense": dense("a", "b", "c"),
    "item_dense": dense("d", "e"),
    "scored": weighted_sparse("w", "x"),
    "vectors": embedding("p", "q", width=3),
}
FEATURES = [name for entry in INPUTS.values() for name in entry.features]
USER = frozenset("uvabc")
SHARED: Sequence[frozenset[str]] = (
    USER,
    frozenset("uv"),
    frozenset("abc"),
    frozenset("uvabcwxpq"),
    frozenset("ij"),
    frozenset("u"),
    frozenset("uvi"),
    frozenset("w"),
    frozenset(FEATURES),
)
"""What rows share: inputs as a whole, and some of their features."""

Forward = Callable[[Any, Batch], dict[str, Any]]
ENTIRE = {"tables": {"dtype": "float32"}}


def bags(*features: str, is_weighted: bool = False) -> EmbeddingBagCollection:
    tables = [table(name, IDS, width=WIDTH) for name in features]
    return EmbeddingBagCollection(tables=tables, is_weighted=is_weighted, device=CPU)


def sequences(*features: str) -> EmbeddingCollection:
    return EmbeddingCollection(
        device=CPU,
        tables=[
            EmbeddingConfig(
                name=f"s_{name}", num_embeddings=IDS, embedding_dim=WIDTH, feature_names=[name]
            )
            for name in features
        ],
    )


class Model(nn.Module):
    """Whatever models use."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = bags("u", "v")
        self.item = bags("i", "j")
        self.scored = bags("w", "x", is_weighted=True)
        self.user_lists = sequences("u", "v")
        self.item_lists = sequences("i", "j")
        self.all_bags = bags("u", "v", "i", "j")
        self.of_user = nn.Linear(8, 4)
        self.of_item = nn.Linear(8, 4)
        self.of_dense = nn.Linear(3, 4)
        self.over = nn.Linear(21, 8)
        self.top = nn.Linear(8, 1)
        self.eight = nn.Linear(8, 3)
        self.attention = nn.Linear(16, 1)
        self.norm = nn.BatchNorm1d(21)
        self.layer_norm = nn.LayerNorm(8)
        self.drop = nn.Dropout()
        for name, part in parts.items():
            self.add_module(name, part)


def predictor(forward: Forward, **options: Any) -> Predictor:
    """A model with one method, ready to serve, of other weights each with the same parts."""
    parts: Mapping[str, nn.Module] = getattr(forward, "parts", {})

    class Factory(SimpleFactory):
        inputs = INPUTS

        def model(self, device: torch.device) -> nn.Module:
            assert device == CPU
            return Model(parts).eval()

        def forward(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
            return forward(model, batch)

    chosen = Options.model_validate({**ENTIRE, **options})
    with unchanged_process():
        output = run_factory(Factory(), CPU, world_size=1)
        nothing: Any = None
        made = Made(
            package=nothing,
            options=chosen,
            device=CPU,
            output=output,
            collections=find_collections(output.module, chosen.tables.quantization_mapping),
        )
        weighted = load_weights(made, None)
        laid = lay_out(
            weighted, {}, lambda given: TableStore.encode(layout(given.collections), given.own_rows)
        )
        return make_ready(weighted, laid, None)


class Pair:
    """A model with its graph, and stock's."""

    def __init__(self, forward: Forward) -> None:
        self.served = predictor(forward)
        off = {"kernels": {"off": "all"}}
        stock = predictor(forward, **off)
        self.engine = Engine("sharing", self.served, Options())
        self._stock = Engine("stock", stock, Options.model_validate(off))

    @property
    def graph(self) -> Any:
        return self.served.graphs["forward"]

    def assert_same(self, requests: Sequence[tuple[bytes, bytes]]) -> None:
        """Requests whose rows share, asked together, answer as stock does to the same in full."""
        received = self.engine.predict([raw(given) for given, _ in requests])
        expected = self._stock.predict([raw(full) for _, full in requests])
        for answer, wanted in zip(received, expected, strict=True):
            if isinstance(answer, Exception) or isinstance(wanted, Exception):
                assert str(answer) == str(wanted)
                continue
            found, known = json.loads(answer.body), json.loads(wanted.body)
            for document in (found, known):
                document.pop("predictions", None)
            assert list(found) == list(known)
            for name, values in known.items():
                close = np.testing.assert_allclose
                close(np.array(found[name], float), values, atol=2e-5, rtol=2e-5, err_msg=name)


def raw(body: bytes) -> RawRequest:
    return RawRequest(body=body, content_type="application/json", qualname="forward")


def value(name: str, random: np.random.Generator) -> Any:
    """What one row has of a feature; often an empty list."""
    entry = next(entry for entry in INPUTS.values() if name in entry.features)
    if entry.type == "dense":
        return float(random.normal())
    if entry.type == "embedding":
        return random.normal(size=entry.width).tolist()
    ids = random.integers(0, IDS, int(random.integers(0, 4))).tolist()
    return [[one, float(random.normal())] for one in ids] if entry.type != "sparse" else ids


def request(rows: int, shared: Collection[str], random: np.random.Generator) -> tuple[bytes, bytes]:
    """Rows that share features, and the same in full.

    In columns where the features are all of some inputs, as only they can share a dense one.
    """
    once = {name: value(name, random) for name in FEATURES if name in shared}
    instances = [
        {name: value(name, random) for name in FEATURES if name not in shared} for _ in range(rows)
    ]
    full = [{**once, **row} for row in instances]
    whole = {name for name, entry in INPUTS.items() if set(entry.features) <= set(shared)}
    if rows > 1 and set(shared) == {one for name in whole for one in INPUTS[name].features}:
        return columns(full, whole), columns(full, set())
    given = {"instances": instances, "shared": once}
    return json.dumps(given).encode(), json.dumps({"instances": full}).encode()


def columns(rows: Sequence[Mapping[str, Any]], whole: Collection[str]) -> bytes:
    """JSON columns, of some inputs one row."""
    found: dict[str, Any] = {"batch_size": len(rows)}
    for name, entry in INPUTS.items():
        own = rows[:1] if name in whole else rows
        if entry.type == "dense":
            found[name] = [[row[one] for one in entry.features] for row in own]
        elif entry.type == "embedding":
            found[name] = [[row[one] for row in own] for one in entry.features]
        else:
            lists = [row[one] for one in entry.features for row in own]
            ids = [one for each in lists for one in each]
            found[f"{name}.lengths"] = [len(each) for each in lists]
            found[f"{name}.values"] = ids
            if entry.type == "weighted_sparse":
                found[f"{name}.values"] = [one for one, _ in ids]
                found[f"{name}.weights"] = [weight for _, weight in ids]
    return json.dumps(found).encode()


BATCHES: Sequence[tuple[tuple[int, bool], ...]] = (
    ((9, True),),
    ((1, True), (12, True)),
    ((8, True), (3, False), (30, True)),
    ((40, True), (40, True)),
)
"""Requests of one batch: rows, and whether they share."""


def batches(shared: Collection[str], seed: int = 0) -> list[list[tuple[bytes, bytes]]]:
    random = np.random.default_rng(seed)
    return [
        [request(rows, shared if shares else (), random) for rows, shares in batch]
        for batch in BATCHES
    ]
