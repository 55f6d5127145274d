"""What users' models do beside lookups and layers, archived, loaded and asked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.answered import ask as answered
from tests.support.factories import uncommon
from tests.support.factories.kinds_base import KindFactory, trained
from tests.support.kinds import batch, build, load_archive
from torchrec_handler.errors import BuildError, FactoryError, LoadError
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest

FLOAT32 = {"tables": {"dtype": "float32"}}
CONFIG = "torchrec: {tables: {dtype: float32}}\n"
EXPECTED = "expected finite numbers; --allow-invalid-rows over.bias takes it as it is"
IDS = {
    "id_list_features.lengths": [2, 1, 1, 0, 3, 1],
    "id_list_features.values": [48, 49, 1, 7, 3, 4, 5, 39],
}


def engine(kind: type[KindFactory], folder: Path, **arguments: Any) -> Engine:
    """An archive with float tables, loaded."""
    config = folder / "config.yaml"
    config.write_text(CONFIG)
    archive = build(kind, folder, config_file=config, **arguments)
    return Engine("kind", load_archive(archive, **FLOAT32), Options())


def ask(engine: Engine, *bodies: Mapping[str, Any], qualname: str = "forward") -> list[Any]:
    """The answers of requests of one batch."""
    requests = [
        RawRequest(
            body=json.dumps(body).encode(), content_type="application/json", qualname=qualname
        )
        for body in bodies
    ]
    answers = answered(engine, requests)
    return [(answer.status, json.loads(answer.body)) for answer in answers]


@pytest.mark.parametrize(
    "kind",
    [
        uncommon.BagsFactory,
        uncommon.HookedFactory,
        uncommon.PatchedFactory,
        uncommon.NamedFactory,
        uncommon.OffsetsFactory,
        uncommon.BucketsFactory,
        pytest.param(
            uncommon.WeightNormFactory, marks=pytest.mark.filterwarnings("ignore:.*weight_norm")
        ),
        uncommon.ParametrizedFactory,
    ],
)
@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_answers_as_the_float_model(
    kind: type[KindFactory],
    has_checkpoint: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    model = trained(kind) if has_checkpoint else kind().create_predict_module()
    weights = model.predict_module.state_dict() if has_checkpoint else None
    ((status, answer),) = ask(engine(kind, tmp_path, weights=weights), IDS)
    assert status == 200
    assert answer["default"] == pytest.approx(model(batch(IDS))["default"].tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            uncommon.HookedTableFactory,
            "_module.bags.embedding_bags.t_user: it has hooks",
        ),
        (
            uncommon.PatchedBagsFactory,
            "_module.bags: its forward was replaced on the instance",
        ),
    ],
)
def test_what_quantizing_would_lose_is_refused(
    kind: type[KindFactory], message: str, tmp_path: Path
) -> None:
    with pytest.raises(FactoryError) as caught:
        build(kind, tmp_path)
    lost = "which quantizing would lose; do it in a module around the collection"
    assert str(caught.value) == f"{message}, {lost}"


def test_values_that_depend_on_the_longest_list_of_a_batch_are_each_requests_own(
    tmp_path: Path,
) -> None:
    """Of at most 3 ids a list, all batches look alike."""
    served = engine(uncommon.BucketsFactory, tmp_path)
    short = {"id_list_features.lengths": [2, 0], "id_list_features.values": [1, 2]}
    long = {"id_list_features.lengths": [16, 0], "id_list_features.values": [1] * 16}
    shares = [answer["share"] for _, answer in ask(served, short, long)]
    assert shares == [[0.25], [1.0]]


def test_one_key_of_two_tables_is_limited_by_the_table_of_its_input(tmp_path: Path) -> None:
    served = engine(uncommon.TowersFactory, tmp_path)
    good = {"user.lengths": [1], "user.values": [4], "item.lengths": [1], "item.values": [49]}
    ((status, answer),) = ask(served, good)
    assert status == 200
    model = uncommon.TowersFactory().create_predict_module()
    assert answer["default"] == pytest.approx(model(batch(good))["default"].tolist(), abs=1e-5)
    ((status, answer),) = ask(served, {**good, "user.values": [5]})
    assert (status, answer["message"]) == (
        400,
        "user.values[0]: received id 5 of feature 'id', expected 0 to 4",
    )


def test_rows_that_two_inputs_name_alike_are_asked_for_as_columns(tmp_path: Path) -> None:
    """One name would fill both."""
    ((status, answer),) = ask(engine(uncommon.TowersFactory, tmp_path), {"instances": [{"id": 4}]})
    assert (status, answer["message"]) == (
        400,
        "id: a feature of user and of item, which rows cannot tell apart; send columns",
    )


@pytest.mark.parametrize(
    ("kind", "method", "item"),
    [(uncommon.MethodsFactory, "few", 4), (uncommon.HashedMethodFactory, "hashed", 1_000)],
)
def test_each_method_has_the_ids_of_its_own_tables(
    kind: type[KindFactory], method: str, item: int, tmp_path: Path
) -> None:
    served = engine(kind, tmp_path)
    model = kind().create_predict_module()

    def one(value: int) -> dict[str, Any]:
        return {"item.lengths": [1], "item.values": [value]}

    ((status, answer),) = ask(served, one(49))
    assert status == 200
    assert answer["default"] == pytest.approx(model(batch(one(49)))["default"].tolist(), abs=1e-5)
    ((status, answer),) = ask(served, one(item), qualname=method)
    assert status == 200
    expected = getattr(model, method)(batch(one(item)))["default"].tolist()
    assert answer["default"] == pytest.approx(expected, abs=1e-5)


def test_a_row_that_one_method_s_table_lacks_harms_nobody_else(tmp_path: Path) -> None:
    served = engine(uncommon.MethodsFactory, tmp_path)
    bodies = [{"item.lengths": [1], "item.values": [item]} for item in (4, 5)]
    (good, bad) = ask(served, *bodies, qualname="few")
    assert good[0] == 200
    assert bad[0] == 400
    assert "the model made the row 5 of its ids, its table has 5 rows" in bad[1]["message"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "over.bias",
            torch.tensor([float("nan")]),
            f"weights: over.bias holds nan as float32, {EXPECTED}",
        ),
        (
            "over.bias",
            torch.tensor([1e300], dtype=torch.float64),
            f"weights: over.bias holds inf as float32, {EXPECTED}",
        ),
        (
            "over.bias",
            torch.tensor([1 + 2j]),
            "weights: over.bias: received complex64, expected float32",
        ),
        (
            "over.bias",
            torch.tensor([1], dtype=torch.int8),
            "weights: over.bias: received int8, expected float32",
        ),
    ],
)
def test_dense_weights_that_nobody_can_answer_with_are_refused(
    name: str, value: torch.Tensor, message: str, tmp_path: Path
) -> None:
    weights = uncommon.BagsFactory().create_predict_module().predict_module.state_dict()
    with pytest.raises((BuildError, LoadError)) as caught:
        build(uncommon.BagsFactory, tmp_path, weights={**weights, name: value})
    assert str(caught.value) == message


def test_dense_weights_that_are_not_finite_may_be_allowed(tmp_path: Path) -> None:
    weights = uncommon.BagsFactory().create_predict_module().predict_module.state_dict()
    weights["over.bias"] = torch.tensor([float("inf")])
    archive = build(
        uncommon.BagsFactory, tmp_path, weights=weights, allow_invalid_rows=["over.bias"]
    )
    ((status, answer),) = ask(Engine("kind", load_archive(archive), Options()), IDS)
    assert (status, answer["default"]) == (200, [None] * 3)
