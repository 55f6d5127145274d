"""Whatever the rows of a request share, the answer is that of the same rows sent in full."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered import ask
from tests.support.exact import CPU, examples
from tests.support.factories.kinds_base import Batch, KindFactory, keyed
from tests.support.factories.kinds_own import PartFactory, PrunedFactory
from tests.support.factories.kinds_pooled import (
    SEEN_IDS,
    PooledPredictModule,
    SumFactory,
    WidthsFactory,
)
from tests.support.factories.ranking import RankingPredictFactory
from tests.support.kinds import KINDS, prepare
from tests.support.one_request import JSON, PROTOBUF, floats, ints
from torchrec_handler.archive.format import InputSignature
from torchrec_handler.front.torchserve.answers import HttpAnswer
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.signature.inputs import observe_signature
from torchrec_handler.load.states import Predictor
from torchrec_handler.message.predictor_pb2 import PredictionRequest, PredictionResponse
from torchrec_handler.options import Options
from torchrec_handler.serve import batch
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.tables.find import find_collections

Columns = dict[str, npt.NDArray[Any]]

TABLE_WISE = {"world_size": 1}
ROW_WISE = {"world_size": 2, "type": "row_wise"}


class WritesPredictModule(PooledPredictModule):
    """Hashes its ids where they lie, each row's in a way of its own."""

    def predict_forward(self, batch: Batch) -> Batch:
        lengths, values = batch["id_list_features.lengths"], batch["id_list_features.values"]
        values.add_(torch.arange(len(values), dtype=torch.int32)).remainder_(40)
        assert int(lengths.sum()) == len(values)
        return super().predict_forward(batch)


class WritesFactory(SumFactory):
    """Writes to its inputs."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return WritesPredictModule(model, "cpu")


class ShiftsPredictModule(PooledPredictModule):
    """Gives its collection other ids than it got, in lists as long."""

    def predict_forward(self, batch: Batch) -> Batch:
        values = batch["id_list_features.values"]
        other = (values + torch.arange(len(values), dtype=torch.int32)) % 40
        return super().predict_forward({**batch, "id_list_features.values": other})


class ShiftsFactory(SumFactory):
    """Makes ids of its own."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return ShiftsPredictModule(model, "cpu")


class ReorderedPredictModule(PooledPredictModule):
    """Names its features in another order than its collection."""

    def predict_forward(self, batch: Batch) -> Batch:
        model = self.predict_module
        score, pooled = model(keyed(batch, ["tag", *model.features[:-1]]))
        return {"default": score, "pooled": pooled}


class ReorderedFactory(WidthsFactory):
    """Features in another order than the collection's tables."""

    def predict_module(self, model: torch.nn.Module) -> Any:
        return ReorderedPredictModule(model, "cpu")


SERVED: dict[str, type[KindFactory]] = {
    **KINDS,
    "pruned": PrunedFactory,
    "two-collections": PartFactory,
    "ranking": RankingPredictFactory,
    "reordered": ReorderedFactory,
    "writes": WritesFactory,
    "shifts": ShiftsFactory,
}


@cache
def predictor(name: str, sharding: str = "table_wise") -> Predictor:
    """A kind, quantized and sharded, ready to serve."""
    factory = SERVED[name]()
    output = run_factory(factory, CPU, world_size=1)
    module = factory.run_weights_independent_tranformations(output.module)
    signature = observe_signature(output, module, find_collections(module), CPU)
    options = ROW_WISE if sharding == "row_wise" else TABLE_WISE
    return Predictor(
        module=prepare(module, sharding=options).eval(),
        signature=signature,
        batching=output.batching,
        qualnames=output.qualnames,
        result_metadata=output.result_metadata,
        device=CPU,
        tables=None,
        plan=None,
    )


def engine(served: Predictor, rows_per_forward: int = 1_000) -> Engine:
    limits = {"rows_per_forward": rows_per_forward}
    return Engine("sharing", served, Options.model_validate({"limits": limits}))


def value(entry: InputSignature, feature: int, random: np.random.Generator) -> Any:
    """What one row has of one feature, as JSON rows hold it; often an empty list."""
    if entry.type == "dense":
        return random.standard_normal(entry.num_features).round(3).tolist()
    count = int(random.integers(0, 5))
    limit = entry.ids_below[feature]
    ids = random.integers(0, limit, count) if limit else random.choice(SEEN_IDS, count)
    if entry.type == "weighted_sparse":
        return [[int(number), float(random.integers(1, 9))] for number in ids]
    return ids.tolist()


def rows_pair(
    inputs: Sequence[InputSignature], rows: int, random: np.random.Generator
) -> tuple[bytes, bytes]:
    """JSON rows with some features shared, and the same with every row in full."""
    instances: list[dict[str, Any]] = [{} for _ in range(rows)]
    shared: dict[str, Any] = {}
    for entry in inputs:
        names = (entry.name,) if entry.type == "dense" else entry.features
        for feature, name in enumerate(names):
            if random.random() < 0.5:
                shared[name] = value(entry, feature, random)
            else:
                for row in instances:
                    row[name] = value(entry, feature, random)
    document = {"instances": instances, "shared": shared}
    full = {"instances": [{**shared, **row} for row in instances]}
    return json.dumps(document).encode(), json.dumps(full).encode()


def columns_pair(
    inputs: Sequence[InputSignature], rows: int, random: np.random.Generator
) -> tuple[Columns, Columns]:
    """Arrays with some blocks of one row, not all, and the same with all blocks in full."""
    given: Columns = {}
    full: Columns = {}
    tells_rows = random.integers(len(inputs))
    for position, entry in enumerate(inputs):
        is_shared = position != tells_rows and random.random() < 0.5
        if entry.type == "dense":
            block = np.array([value(entry, 0, random) for _ in range(1 if is_shared else rows)])
            given[entry.name] = block
            full[entry.name] = np.broadcast_to(block, (rows, block.shape[1]))
            continue
        lists = [
            [value(entry, feature, random) for _ in range(1 if is_shared else rows)]
            for feature in range(len(entry.features))
        ]
        given |= sparse_columns(entry, lists)
        full |= sparse_columns(entry, [found * rows for found in lists] if is_shared else lists)
    return given, full


def sparse_columns(entry: InputSignature, lists: Sequence[Sequence[Any]]) -> Columns:
    elements = [element for found in lists for ids in found for element in ids]
    arrays = {f"{entry.name}.lengths": np.array([len(ids) for found in lists for ids in found])}
    if entry.type == "weighted_sparse":
        pairs = np.array(elements).reshape(-1, 2)
        arrays[f"{entry.name}.weights"] = pairs[:, 1]
        elements = pairs[:, 0].tolist()
    return {**arrays, f"{entry.name}.values": np.array(elements, np.int64)}


def json_columns(arrays: Mapping[str, npt.NDArray[Any]], rows: int) -> bytes:
    found = {name: array.tolist() for name, array in arrays.items()}
    return json.dumps({**found, "batch_size": rows}).encode()


def open_inference(arrays: Mapping[str, npt.NDArray[Any]], _: int) -> bytes:
    tensors = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "INT64" if array.dtype == np.int64 else "FP32",
            "data": array.reshape(-1).tolist(),
        }
        for name, array in arrays.items()
    ]
    return json.dumps({"inputs": tensors}).encode()


def protobuf(arrays: Mapping[str, npt.NDArray[Any]], rows: int) -> bytes:
    request = PredictionRequest(batch_size=rows)
    request.float_features.num_features = arrays["float_features"].shape[1]
    request.float_features.values = floats(arrays["float_features"])
    for name, features in (("id_list_features", 3), ("id_score_list_features", 2)):
        part = getattr(request, name)
        part.num_features = features
        part.lengths = ints(arrays[f"{name}.lengths"])
        part.values = ints(arrays[f"{name}.values"])
    request.id_score_list_features.weights = floats(arrays["id_score_list_features.weights"])
    return request.SerializeToString()


WRITERS: dict[str, Callable[[Mapping[str, npt.NDArray[Any]], int], bytes]] = {
    "json columns": json_columns,
    "open inference": open_inference,
    "protobuf": protobuf,
}


def raw(body: bytes, content_type: str = JSON, qualname: str = "forward") -> RawRequest:
    return RawRequest(body=body, content_type=content_type, qualname=qualname)


def assert_same(served: Engine, pairs: Sequence[tuple[RawRequest, RawRequest]]) -> None:
    """What is pooled bit for bit; a dense layer rounds by where its input lies in memory."""
    given = ask(served, [given for given, _ in pairs])
    full = ask(served, [full for _, full in pairs])
    for response, expected in zip(given, full, strict=True):
        assert response.status == expected.status == 200
        outputs, wanted = opened(response), opened(expected)
        assert outputs.keys() == wanted.keys()
        for name, values in wanted.items():
            tolerance = 0 if name == "pooled" else 1e-6
            np.testing.assert_allclose(outputs[name], values, atol=tolerance, rtol=tolerance)


def opened(response: HttpAnswer) -> dict[str, Any]:
    """Output name -> values."""
    if response.content_type == PROTOBUF:
        message = PredictionResponse.FromString(response.body)
        return {name: list(vector.data) for name, vector in message.predictions.items()}
    document: dict[str, Any] = json.loads(response.body)
    if "outputs" in document:
        return {output["name"]: output["data"] for output in document["outputs"]}
    return document


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small requests take the way that pays for large ones."""
    for cost in ("CALL_COST", "RUN_COST", "LIST_COST"):
        monkeypatch.setattr(batch, cost, 0)


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[Predictor], list[int]]:
    """Watch how many ids reach the lookup operators of a model, call by call."""

    def watch(served: Predictor) -> list[int]:
        counts: list[int] = []
        for lookup in find_collections(served.module).lookups:
            forward = lookup.operator.forward

            def counted(
                *args: Any, forward: Callable[..., Any] = forward, **kwargs: Any
            ) -> torch.Tensor:
                counts.append(int(kwargs["indices"].numel()))
                found: torch.Tensor = forward(*args, **kwargs)
                return found

            monkeypatch.setattr(lookup.operator, "forward", counted)
        return counts

    return watch


REQUESTS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 2**32 - 1)), min_size=1, max_size=4)
"""Rows of each request, and what it is drawn from."""

FEW = examples(0.03)


@pytest.mark.usefixtures("always")
class TestAnswersAreThoseOfRowsInFull:
    """Alone and beside others, cut or not."""

    @pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
    @pytest.mark.parametrize("name", list(SERVED))
    @FEW
    @given(requests=REQUESTS, most=st.integers(1, 12))
    def test_every_kind(
        self, name: str, sharding: str, requests: list[tuple[int, int]], most: int
    ) -> None:
        if "position-weighted" in name:
            sharding = "table_wise"
        served = predictor(name, sharding)
        pairs = [
            rows_pair(served.signature.inputs, rows, np.random.default_rng(seed))
            for rows, seed in requests
        ]
        for qualname in served.qualnames:
            bodies = [
                (raw(given, JSON, qualname), raw(full, JSON, qualname)) for given, full in pairs
            ]
            assert_same(engine(served, most), bodies)

    @examples(0.15)
    @given(
        requests=REQUESTS,
        names=st.lists(st.sampled_from(list(WRITERS)), min_size=4, max_size=4),
        most=st.integers(1, 12),
    )
    def test_every_format(
        self, requests: list[tuple[int, int]], names: list[str], most: int
    ) -> None:
        """Of those that hold blocks, side by side in one batch."""
        served = predictor("ranking")
        bodies: list[tuple[RawRequest, RawRequest]] = []
        for (rows, seed), name in zip(requests, names, strict=False):
            pair = columns_pair(served.signature.inputs, rows, np.random.default_rng(seed))
            kind = PROTOBUF if name == "protobuf" else JSON
            given, full = (raw(WRITERS[name](arrays, rows), kind) for arrays in pair)
            bodies.append((given, full))
        assert_same(engine(served, most), bodies)


def ranking_request(inputs: Sequence[InputSignature], rows: int, ids: int) -> bytes:
    """A user's lists of ids once, and one id of the last feature of each input a candidate."""
    shared: dict[str, Any] = {}
    instances: list[dict[str, Any]] = [{} for _ in range(rows)]
    for entry in inputs:
        if entry.type == "dense":
            shared[entry.name] = [0] * (entry.num_features or 0)
            continue
        element = [1, 0.5] if entry.type == "weighted_sparse" else 1
        shared |= {name: [element] * ids for name in entry.features[:-1]}
        for row in instances:
            row[entry.features[-1]] = [element]
    return json.dumps({"instances": instances, "shared": shared}).encode()


ONCE = [
    "sum",
    "mean",
    "weighted",
    "shared",
    "widths",
    "by-position",
    "reordered",
    "dlrm",
    "pruned",
    "ranking",
]
IN_EVERY_ROW = [
    "position-weighted",
    "position-weighted-each",
    "managed",
    "sequence",
    "writes",
    "shifts",
]


class TestIdsThatReachTheOperators:
    ROWS = 30
    IDS = 5

    @pytest.mark.usefixtures("always")
    @pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
    @pytest.mark.parametrize("name", ONCE)
    def test_are_those_that_were_sent(
        self, name: str, sharding: str, looked_up: Callable[[Predictor], list[int]]
    ) -> None:
        """Of pooled features, also where a shard has a part of their rows."""
        served = predictor(name, sharding)
        counts = looked_up(served)
        body = ranking_request(served.signature.inputs, self.ROWS, self.IDS)
        (response,) = ask(engine(served), [raw(body)])
        assert response.status == 200
        assert sum(counts) == sum(
            self.IDS * (len(entry.features) - 1) + self.ROWS
            for entry in served.signature.inputs
            if entry.features
        )

    @pytest.mark.usefixtures("always")
    @pytest.mark.parametrize("name", IN_EVERY_ROW)
    def test_are_every_rows_where_a_model_may_tell_rows_apart(
        self, name: str, looked_up: Callable[[Predictor], list[int]]
    ) -> None:
        """Sequences, ids weighted by their position, and ids that are not the batch's own."""
        served = predictor(name)
        counts = looked_up(served)
        body = ranking_request(served.signature.inputs, self.ROWS, self.IDS)
        (response,) = ask(engine(served), [raw(body)])
        assert response.status == 200
        assert sum(counts) == sum(
            self.ROWS * (self.IDS * (len(entry.features) - 1) + 1)
            for entry in served.signature.inputs
        )

    @pytest.mark.parametrize(
        ("rows", "ids", "once"),
        [(1_000, 100, True), (1_000, 1, False), (3, 100, False)],
    )
    def test_are_every_rows_where_looking_up_once_does_not_pay(
        self,
        rows: int,
        ids: int,
        once: bool,  # noqa: FBT001  a table's column
        looked_up: Callable[[Predictor], list[int]],
    ) -> None:
        """Short lists, and few of them, are looked up faster than their pooled rows are copied."""
        served = predictor("dlrm")
        counts = looked_up(served)
        (response,) = ask(
            engine(served), [raw(ranking_request(served.signature.inputs, rows, ids))]
        )
        assert response.status == 200
        assert sum(counts) == rows + 2 * ids * (1 if once else rows)
