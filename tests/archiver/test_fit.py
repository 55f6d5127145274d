"""Fitting a checkpoint to the predict module by the model's own names."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from tests.factories.packaged import QuantizedPredictFactory
from tests.factories.ranking import RankingPredictModule, seeded
from torchrec_archiver.checkpoint import read_checkpoint
from torchrec_archiver.entries import Checkpoint
from torchrec_archiver.fit import fit
from torchrec_handler.errors import BuildError

TABLES = {
    ("_module.sparse", "t_user"),
    ("_module.sparse", "t_movie"),
    ("_module.sparse", "t_genres"),
    ("_module.weighted", "t_tags"),
    ("_module.weighted", "t_clicks"),
}


def state() -> dict[str, torch.Tensor]:
    return dict(seeded().state_dict())


def held(content: Mapping[str, object]) -> Checkpoint:
    """What a file with this content gives."""
    return read_checkpoint(content, Path())


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("module", [RankingPredictModule(seeded("meta"), "cpu"), seeded("meta")])
def test_every_weight_goes_where_it_belongs(module: torch.nn.Module) -> None:
    """With and without a PredictModule around the trained model."""
    checkpoint = state()
    weights = fit(held(checkpoint), module)
    assert sorted(weights.dense) == ["over.0.bias", "over.0.weight", "over.2.bias", "over.2.weight"]
    assert {name for _, name in weights.rows} == {name for _, name in TABLES}
    for (collection, name), rows in weights.rows.items():
        key = f"{collection.removeprefix('_module.')}.embedding_bags.{name}.weight"
        assert rows.data_ptr() == checkpoint[key].data_ptr()


def test_a_module_that_its_factory_quantized_takes_float_rows() -> None:
    module = QuantizedPredictFactory().create_predict_module()
    weights = fit(held(state()), module)
    assert weights.rows.keys() == TABLES
    assert len(weights.dense) == 4


def _renamed(checkpoint: dict[str, torch.Tensor]) -> None:
    checkpoint["over.0.wieght"] = checkpoint.pop("over.0.weight")


def _prefixed(checkpoint: dict[str, torch.Tensor]) -> None:
    for name in list(checkpoint):
        if not name.startswith("over.0"):
            del checkpoint[name]
    checkpoint["model.over.0.bias"] = checkpoint.pop("over.0.bias")


def _several(checkpoint: dict[str, torch.Tensor]) -> None:
    checkpoint["over.0.weight"] = torch.zeros(3, 3)
    checkpoint["sparse.embedding_bags.t_user.weight"] = torch.zeros(49, 8)
    del checkpoint["over.2.bias"]
    checkpoint["criterion.weight"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (
            _renamed,
            [
                "missing: over.0.weight (did you mean over.0.wieght?)",
                "unexpected: over.0.wieght (did you mean over.0.weight?)",
            ],
        ),
        (
            _several,
            [
                "missing: over.2.bias",
                "over.0.weight: received shape (3, 3), expected (16, 43)",
                ("sparse.embedding_bags.t_user.weight: received shape (49, 8), expected (50, 8)"),
                "unexpected: criterion.weight",
            ],
        ),
        (
            _prefixed,
            [
                "missing: over.0.bias (did you mean model.over.0.bias?)",
                "missing: over.2.bias (did you mean model.over.0.bias?)",
                "missing: over.2.weight",
                "missing: sparse.embedding_bags.t_genres.weight",
                "missing: sparse.embedding_bags.t_movie.weight",
                "missing: sparse.embedding_bags.t_user.weight",
                "missing: weighted.embedding_bags.t_clicks.weight",
                "missing: weighted.embedding_bags.t_tags.weight",
                "unexpected: model.over.0.bias (did you mean over.0.bias?)",
            ],
        ),
    ],
)
def test_every_fault_is_listed_at_once(
    change: Callable[[dict[str, torch.Tensor]], None], faults: list[str]
) -> None:
    checkpoint = state()
    change(checkpoint)
    module = RankingPredictModule(seeded("meta"), "cpu")
    said = error_of(lambda: fit(held(checkpoint), module))
    assert said.splitlines() == [
        "weights: the checkpoint does not fit the predict module",
        *(f"  {fault}" for fault in faults),
    ]
