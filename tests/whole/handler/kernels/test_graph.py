"""The models of the benchmarks as graphs: used, told, and no other numbers."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.models import MODELS, Model
from benchmarks.models.contenders import Served
from benchmarks.models.inputs import draw, draw_request, draw_user
from benchmarks.models.loading import load, pack
from tests.support.answered import ask
from tests.support.exact import examples
from tests.support.sharing import FEATURES, SHARED, Forward, Pair, batches, raw
from torchrec_archiver import build_archive
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.method import (
    EVERY,
    GraphMethod,
)
from torchrec_handler.load.loader import load as load_archive
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Kernels, Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.predict import HostResult, predict
from torchrec_handler.serve.validate import Validator

ROWS = (1, 16, 128, 1000)
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


@pytest.fixture(autouse=True, scope="module")
def always() -> Any:
    """Graphs are used at all sizes: on a busy machine a clock tells nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "_time", lambda method: method.ranges.append(EVERY[0]))
        yield


@cache
def predictors(name: str) -> tuple[Predictor, Predictor]:
    """With graphs, and stock's."""
    (model,) = (model for model in MODELS if model.name == name)
    package = pack(model)
    stock = load(package, Options(kernels=Kernels(off="all"))).predictor
    return load(package, Options()).predictor, stock


def scores(predictor: Predictor, batch: dict[str, torch.Tensor]) -> HostResult:
    return predict(predictor.module, "forward", {**batch}, predictor.result_metadata)


def assert_equal(found: HostResult, expected: HostResult) -> None:
    assert list(found) == list(expected)
    for name, (own,) in expected.items():
        np.testing.assert_allclose(found[name][0], own, atol=1e-5, rtol=0)


@each_model
def test_a_graph_is_used_and_reported(model: Model) -> None:
    graphs, stock = predictors(model.name)
    assert list(graphs.graphs) == ["forward"]
    (found,) = (one for one in graphs.report.replaced if one.kernel == "graph")
    assert (found.path, found.dtype) == ("forward", "float32")
    assert graphs.graphs["forward"]._run.block
    assert stock.graphs == {}


@each_model
@pytest.mark.parametrize("rows", ROWS)
def test_scores_are_stocks(model: Model, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the graph itself, whose errors nobody would see."""
    graphs, stock = predictors(model.name)
    method = graphs.graphs["forward"]
    monkeypatch.setattr(graphs.module, "forward", method.compute)
    for batch in (draw(model, rows), draw_user(model, rows, seed=1)):
        assert_equal(scores(graphs, batch), scores(stock, batch))


@each_model
def test_shared_requests_are_those_written_out(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, stock = predictors(model.name)
    made: list[Any] = []
    own = GraphMethod.shared

    def watched(method: GraphMethod, shared: Any) -> Any:
        made.append(own(method, shared))
        return made[-1]

    monkeypatch.setattr(GraphMethod, "shared", watched)
    check = Validator(graphs.signature, Options())
    served = Served(model.name, graphs, Options())
    seeds = ((50, 0), (300, 1), (1000, 2))
    for rows, seed in seeds:
        expected = scores(stock, draw_user(model, rows, seed))
        assert_equal(served.rank(check(draw_request(model, rows, seed))), expected)
    together = served._call("forward", [check(draw_request(model, *each)) for each in seeds])
    alone = [scores(stock, draw_user(model, *each)) for each in seeds]
    for name, (found,) in together.items():
        expected_ = np.concatenate([one[name][0] for one in alone])
        np.testing.assert_allclose(found, expected_, atol=1e-5, rtol=0)
    assert made
    assert None not in made


@each_model
def test_graphs_that_are_off_are_gone(model: Model) -> None:
    predictor = load(pack(model), Options(kernels=Kernels(off=["graph"]))).predictor
    report = predictor.report
    assert predictor.graphs == {}
    assert "graph" not in {found.kernel for found in report.replaced}
    assert "graph" not in {found.kernel for found in report.declined}
    _, stock = predictors(model.name)
    assert_equal(scores(predictor, draw(model, 16)), scores(stock, draw(model, 16)))


def test_an_archive_is_tried_on_its_samples_and_tests_itself(tmp_path: Path) -> None:
    (model,) = (model for model in MODELS if model.name == "two towers")
    archive = build_archive(
        model_name="graph",
        version="1.0",
        factory=model.factory,
        export_path=tmp_path,
        archive_format="no-archive",
    )
    predictor = load_archive(archive, Options(), torch.device("cpu"))
    assert predictor.index is not None
    assert predictor.index.samples
    graph = predictor.graphs["forward"]
    recorded = [trial.rows for trial in graph.trials][-predictor.index.samples :]
    assert len(recorded) == predictor.index.samples
    engine = Engine("graph", predictor, Options())
    assert "graph" in {found["kernel"] for found in engine.describe()["kernels"]["replaced"]}
    (answer,) = ask(engine, [raw(json.dumps(body(model)).encode())])
    assert answer.status == 200


def body(model: Model) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in draw(model, 3).items()}


STEPS = st.lists(
    st.tuples(st.integers(0, 10), st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=8
)


def step(m: Any, kind: int, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """[B, 8], of two of them."""
    cases: list[Callable[[], torch.Tensor]] = [
        lambda: m.layer_norm(x),
        lambda: torch.cat([m.of_user(x), m.of_item(y)], 1),
        lambda: torch.relu_(m.of_user(x)).repeat(1, 2),
        lambda: torch.where(x > 1, y, x),
        lambda: x * torch.sigmoid(y),
        lambda: x - y,
        lambda: torch.softmax(x, 1),
        lambda: m.over(torch.cat([x, y, x[:, :5]], 1)),
        lambda: torch.cat([x, y], 1)[:, 4:12],
        lambda: (x + 1).clamp_(max=1.5),
        lambda: (x.view(-1, 2, 4) @ torch.tanh(y).view(-1, 4, 2)).flatten(1).repeat(1, 2),
    ]
    return cases[kind]()


def made_of(steps: Sequence[tuple[int, int, int]]) -> Forward:
    """A model of steps over what is the user's and the candidate's."""

    def forward(m: Any, b: Any) -> dict[str, Any]:
        user, item = m.user(b["user"]), m.item(b["item"])
        found = [
            torch.cat([user["u"], user["v"]], 1),
            item.values(),
            torch.cat([user["v"], item["i"]], 1),
            m.over(torch.cat([user.values(), item.values(), b["user_dense"], b["item_dense"]], 1)),
            m.of_dense(b["user_dense"]).repeat(1, 2),
        ]
        for kind, left, right in steps:
            x, y = found[left % len(found)], found[right % len(found)]
            made = step(m, kind, x, y)
            found.append(torch.tanh(made / 3) * 3)
        return {str(at): x for at, x in enumerate(found[-3:])}

    return forward


@examples(0.24)
@given(
    steps=STEPS,
    shared=st.sampled_from([*SHARED, frozenset()]) | st.frozensets(st.sampled_from(FEATURES)),
    seed=st.integers(0, 999),
)
def test_whatever_a_model_is_made_of_and_requests_share(
    steps: list[tuple[int, int, int]], shared: frozenset[str], seed: int
) -> None:
    pair = Pair(made_of(steps))
    for batch in batches(shared, seed):
        pair.assert_same(batch)
