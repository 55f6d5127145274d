"""What a factory quantized, and what is quantized for it, is what its archive answers with."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchrec.inference.modules import (
    quantize_embeddings,
    quantize_inference_model,
)

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_own import (
    OwnMappingFactory,
    OwnTypeFactory,
    PartFactory,
    PrunedFactory,
    QuantizedAtOnceFactory,
    QuantizedFactory,
)
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    OddFactory,
    SumFactory,
)
from tests.support.factories.kinds_sequence import ManagedSequenceFactory
from tests.support.kinds import assert_equal, build, load_archive, random_batch, stored
from torchrec_handler.load.states import Predictor

OWN_TYPE = "tests.support.factories.kinds_own.OwnCollection"
QUANTIZED = "torchrec.quant.embedding_modules"
MANAGED = "torchrec.modules.mc_embedding_modules.ManagedCollision"


def archived(kind: type[KindFactory], folder: Path, **options: Any) -> Predictor:
    (folder / "config.yaml").write_text(yaml.safe_dump({"torchrec": options}))
    return load_archive(build(kind, folder, config_file=folder / "config.yaml"), **options)


@pytest.mark.parametrize("value", [1.0, 70_000.0])
def test_a_worker_takes_the_type_that_the_archive_holds(value: float, tmp_path: Path) -> None:
    """Which it cannot tell from rows: it has none."""
    weights = {
        name: torch.full_like(tensor, value) if "t_odd" in name else tensor
        for name, tensor in OddFactory().create_predict_module().predict_module.state_dict().items()
    }
    archive = build(OddFactory, tmp_path, weights=weights)
    predictor = load_archive(archive)
    assert stored(predictor.module) == {"t_odd": "fp16" if value == 1.0 else "fp32"}
    inputs = {
        "id_list_features.lengths": torch.tensor([2], dtype=torch.int32),
        "id_list_features.values": torch.tensor([1, 2], dtype=torch.int32),
    }
    assert predictor.module(inputs)["pooled"].tolist() == [[2 * value]]


@pytest.mark.parametrize("kind", [QuantizedFactory, QuantizedAtOnceFactory])
def test_a_model_that_its_factory_quantized_is_taken_as_it_is(
    kind: type[KindFactory], tmp_path: Path
) -> None:
    """Whether it did so at once or when it had its weights."""
    predictor = archived(kind, tmp_path)
    assert stored(predictor.module) == {"t_user": "int4", "t_movie": "int4"}
    expected = QuantizedAtOnceFactory().create_predict_module()
    assert_equal(predictor.module, expected, random_batch(SumFactory))


def test_what_its_factory_left_float_is_quantized(tmp_path: Path) -> None:
    """`quantize_embeddings` swaps pooled collections only."""
    predictor = archived(PartFactory, tmp_path)
    assert [
        (*entry.key, entry.dtype)
        for entry in predictor.tables.entries.values()  # type: ignore[union-attr]
    ] == [
        ("_module.pooled.collection", "t_user", "float16"),
        ("_module.pooled.collection", "t_movie", "float16"),
        ("_module.histories.collection", "t_movie", "int8"),
        ("_module.histories.collection", "t_genre", "int8"),
    ]
    expected = quantize_embeddings(
        PartFactory().create_predict_module(), torch.float16, inplace=True
    )
    assert_equal(predictor.module, quantize_inference_model(expected), random_batch(PartFactory))


@pytest.mark.parametrize("folder", ["float", "mapped", "own"])
def test_a_type_of_the_package_is_quantized_on_request(folder: str, tmp_path: Path) -> None:
    """By an option, to a type that the worker has; by the factory, to one of the package."""
    mapping = {OWN_TYPE: f"{QUANTIZED}:EmbeddingBagCollection"}
    kind, options = {
        "float": (OwnTypeFactory, {}),
        "mapped": (OwnTypeFactory, {"quantization_mapping": mapping}),
        "own": (OwnMappingFactory, {}),
    }[folder]
    predictor = archived(kind, tmp_path, tables=options)
    assert predictor.tables
    collection: Any = predictor.module.predict_module
    if folder == "float":
        assert not predictor.tables.entries
        expected = OwnTypeFactory().create_predict_module()
    else:
        assert stored(predictor.module) == {"t_user": "int8", "t_movie": "int8"}
        expected = quantize_inference_model(SumFactory().create_predict_module())
    if folder == "own":
        assert torch.typename(collection.collection).startswith("<torch_package_")
    assert_equal(predictor.module, expected, random_batch(SumFactory))


@pytest.mark.parametrize(
    ("kind", "name"),
    [(ManagedFactory, "EmbeddingBagCollection"), (ManagedSequenceFactory, "EmbeddingCollection")],
)
def test_managed_collision_may_become_torchrecs_quantized_form(
    kind: type[KindFactory], name: str, tmp_path: Path
) -> None:
    """With the answers of the float form around a quantized collection, which is the default."""
    mapping = {f"{MANAGED}{name}": f"{QUANTIZED}:QuantManagedCollision{name}"}
    predictor = archived(kind, tmp_path, tables={"quantization_mapping": mapping})
    collection: Any = predictor.module.predict_module
    assert type(collection.collection).__name__ == f"QuantManagedCollision{name}"
    expected = quantize_inference_model(kind().create_predict_module())
    assert_equal(predictor.module, expected, random_batch(kind))


def test_a_pruned_table_keeps_its_first_rows(tmp_path: Path) -> None:
    """And ids of the others are out of range."""
    predictor = archived(PrunedFactory, tmp_path, tables={"dtype": "float32"})
    assert predictor.tables
    assert [entry.rows for entry in predictor.tables.entries.values()] == [30, 25]
    assert predictor.signature.inputs[0].ids_below == (30, 25)
    expected = SumFactory().create_predict_module()
    assert_equal(predictor.module, expected, random_batch(PrunedFactory))
