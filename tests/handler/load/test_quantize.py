"""Every float collection gives way to a quantized one, and what a factory did stays."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchrec.inference.modules import (
    PredictModule,
    quantize_embeddings,
    quantize_inference_model,
    set_pruning_data,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from tests.factories.kinds_base import KindFactory
from tests.factories.kinds_own import (
    OwnMappingFactory,
    OwnTypeFactory,
    PartFactory,
    PrunedFactory,
    QuantizedAtOnceFactory,
    QuantizedFactory,
)
from tests.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedEachFactory,
    PositionWeightedFactory,
    SumFactory,
)
from tests.factories.kinds_sequence import ManagedSequenceFactory, SequenceFactory
from tests.factories.kinds_two_tower import TwoTowerFactory
from tests.kinds import build, load_archive, prepare, random_batch
from torchrec_handler.errors import FactoryError, OptionError
from torchrec_handler.load.loader import Predictor
from torchrec_handler.load.quantize import TORCH_DTYPES, float_tables, quantize, to_meta
from torchrec_handler.load.tables import lookups
from torchrec_handler.options import Tables

OWN_TYPE = "tests.factories.kinds_own.OwnCollection"
QUANTIZED = "torchrec.quant.embedding_modules"
MANAGED = "torchrec.modules.mc_embedding_modules.ManagedCollision"


def stored(module: torch.nn.Module) -> dict[str, str]:
    """Table -> FBGEMM's name of the data type it is looked up in."""
    return {
        spec[0]: spec[3].value
        for lookup in lookups(module)
        for spec in lookup.operator.embedding_specs
    }


def archived(kind: type[KindFactory], folder: Path, **options: Any) -> Predictor:
    (folder / "config.yaml").write_text(yaml.safe_dump({"torchrec": options}))
    return load_archive(build(kind, folder, config_file=folder / "config.yaml"), **options)


def refused(module: torch.nn.Module, **options: Any) -> str:
    tables = Tables(**options)
    with pytest.raises(OptionError) as caught:
        quantize(module, float_tables(module), tables)
    return str(caught.value)


def assert_equal(module: torch.nn.Module, expected: torch.nn.Module, inputs: Any) -> None:
    received, wanted = module(inputs), expected(inputs)
    assert wanted["default"].unique().numel() > 1
    for name, value in wanted.items():
        assert torch.equal(received[name], value), name


def test_tables_are_found_by_their_place_in_a_checkpoint() -> None:
    module = TwoTowerFactory().create_predict_module()
    tables = float_tables(module)
    assert [(table.collection, table.name, table.parameter) for table in tables] == [
        (
            f"_module.{tower}.collection",
            f"t_{name}",
            f"_module.{tower}.collection.embedding_bags.t_{name}.weight",
        )
        for tower, name in [
            ("user", "user"),
            ("user", "city"),
            ("item", "movie"),
            ("item", "genre"),
        ]
    ]
    assert [tuple(table.weight.shape) for table in tables] == [(50, 8), (20, 8), (40, 8), (10, 8)]


@pytest.mark.parametrize(
    ("kind", "collection"),
    [
        (PositionWeightedFactory, "_module.collection"),
        (ManagedFactory, "_module.collection._embedding_module"),
        (SequenceFactory, "_module.collection"),
        (ManagedSequenceFactory, "_module.collection._embedding_module"),
    ],
)
def test_a_collection_is_what_is_swapped_as_a_whole(
    kind: type[KindFactory], collection: str
) -> None:
    """A position-weighted one with its processors; of a managed one, what is inside."""
    module = kind().create_predict_module()
    assert {table.collection for table in float_tables(module)} == {collection}
    prepared = prepare(module)
    assert {lookup.collection for lookup in lookups(prepared)} == {collection}


def test_rows_are_set_aside_and_none_is_held_twice() -> None:
    module = SumFactory().create_predict_module()
    expected = {name: value.clone() for name, value in module.predict_module.state_dict().items()}
    rows = to_meta(float_tables(module))
    assert list(rows) == [("_module.collection", "t_user"), ("_module.collection", "t_movie")]
    for (_, name), own in rows.items():
        assert torch.equal(own, expected[f"collection.embedding_bags.{name}.weight"])
    assert all(table.weight.is_meta for table in float_tables(module))
    assert to_meta(float_tables(module)) == {}


@pytest.mark.parametrize("dtype", list(TORCH_DTYPES))
@pytest.mark.parametrize("kind", [SumFactory, SequenceFactory])
def test_every_data_type_answers_as_torchrecs_own_quantized_model(
    kind: type[KindFactory], dtype: str
) -> None:
    expected = quantize_inference_model(
        kind().create_predict_module(), quantization_dtype=TORCH_DTYPES[dtype]
    )
    prepared = prepare(kind().create_predict_module(), tables={"dtype": dtype})
    assert set(stored(prepared).values()) == set(stored(expected).values())
    assert_equal(prepared, expected, random_batch(kind))


def test_every_table_may_have_a_data_type_of_its_own() -> None:
    prepared = prepare(
        PositionWeightedFactory().create_predict_module(),
        tables={"dtype": "int4", "per_table": {"t_movie": "float32"}},
    )
    assert stored(prepared) == {"t_user": "int4", "t_movie": "fp32"}


def test_a_processor_for_each_feature_weights_as_one_for_all() -> None:
    """TorchRec's quantized collection calls its processors, which a ModuleDict does not allow."""
    each = prepare(PositionWeightedEachFactory().create_predict_module())
    expected = quantize_inference_model(PositionWeightedFactory().create_predict_module())
    assert_equal(each, expected, random_batch(PositionWeightedFactory))


def test_lookups_give_what_output_dtype_says() -> None:
    prepared = prepare(SumFactory().create_predict_module(), tables={"output_dtype": "float16"})
    model: Any = prepared.predict_module
    model.over.half()
    assert prepared(random_batch(SumFactory))["pooled"].dtype == torch.float16


def test_data_types_of_unknown_tables_are_refused() -> None:
    module = SumFactory().create_predict_module()
    assert refused(module, per_table={"users": "int4", "t_user": "int4"}) == (
        "torchrec.tables.per_table: names users, but the tables to quantize are t_movie, t_user"
    )
    assert refused(torch.nn.Linear(1, 1), per_table={"users": "int4"}) == (
        "torchrec.tables.per_table: names users, but the tables to quantize are none"
    )


@pytest.mark.parametrize(("dtype", "multiple"), [("int8", 2), ("int4", 4), ("int2", 8)])
def test_widths_that_cannot_be_packed_are_refused(dtype: str, multiple: int) -> None:
    """FBGEMM's own message does not name the table."""
    for width in range(1, 17):
        config = EmbeddingBagConfig(
            name="t_odd", num_embeddings=3, embedding_dim=width, feature_names=["odd"]
        )
        module = PredictModule(torch.nn.ModuleList([EmbeddingBagCollection(tables=[config])]))
        if width % multiple:
            assert refused(module, dtype=dtype) == (
                f"torchrec.tables: table 't_odd' is {width} wide, expected a multiple of "
                f"{multiple} for {dtype}"
            )
        else:
            prepare(module, tables={"dtype": dtype})
    module = PredictModule(torch.nn.ModuleList([EmbeddingBagCollection(tables=[config])]))
    prepare(module, tables={"dtype": dtype, "per_table": {"t_odd": "float16"}})


def test_what_torchrec_cannot_quantize_is_the_factorys_error() -> None:
    """A position-weighted collection without a module around it cannot be swapped."""
    module = PositionWeightedFactory().collection(torch.device("cpu"))
    assert isinstance(module, FeatureProcessedEmbeddingBagCollection)
    with pytest.raises(FactoryError) as caught:
        quantize(module, float_tables(module), Tables())
    assert str(caught.value) == (
        "quantize_inference_model raised ValueError: not enough values to unpack (expected 2, "
        "got 1)"
    )


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
        (entry.collection, entry.name, entry.dtype)
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


def test_a_dense_type_may_be_quantized_too() -> None:
    """The mapping is TorchRec's: whatever has a `from_float`."""
    module = SumFactory().create_predict_module()
    mapping = {
        "torch.nn.modules.linear.Linear": "torch.ao.nn.quantized.dynamic:Linear",
    }
    prepared = prepare(module, tables={"dtype": "float16", "quantization_mapping": mapping})
    model: Any = prepared.predict_module
    assert torch.typename(model.over) == "torch.ao.nn.quantized.dynamic.modules.linear.Linear"
    expected = SumFactory().create_predict_module()
    inputs = random_batch(SumFactory)
    torch.testing.assert_close(
        prepared(inputs)["default"], expected(inputs)["default"], atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"tests.Nothing": f"{QUANTIZED}:EmbeddingBagCollection"},
            "the model has no module of type tests.Nothing",
        ),
        (
            {OWN_TYPE: "nowhere:Quantized"},
            "received 'nowhere:Quantized', No module named 'nowhere'",
        ),
        (
            {OWN_TYPE: f"{QUANTIZED}:Nothing"},
            f"received '{QUANTIZED}:Nothing', module '{QUANTIZED}' has no attribute 'Nothing'",
        ),
        (
            {OWN_TYPE: f"{QUANTIZED}:copy"},
            f"received '{QUANTIZED}:copy', expected MODULE:CLASS of a torch.nn.Module",
        ),
    ],
)
def test_a_mapping_that_cannot_be_followed_is_refused(
    mapping: dict[str, str], message: str
) -> None:
    module = OwnTypeFactory().create_predict_module()
    assert refused(module, quantization_mapping=mapping) == (
        f"torchrec.tables.quantization_mapping: {message}"
    )


def test_a_pruned_table_keeps_its_first_rows(tmp_path: Path) -> None:
    """And ids of the others are out of range."""
    predictor = archived(PrunedFactory, tmp_path, tables={"dtype": "float32"})
    assert predictor.tables
    assert [entry.rows for entry in predictor.tables.entries.values()] == [30, 25]
    assert predictor.signature.inputs[0].rows == (30, 25)
    expected = SumFactory().create_predict_module()
    assert_equal(predictor.module, expected, random_batch(PrunedFactory))


def test_a_pruned_position_weighted_table_keeps_its_first_rows() -> None:
    module = PositionWeightedFactory().create_predict_module()
    expected = PositionWeightedFactory().create_predict_module()
    set_pruning_data(module, {"t_movie": 7}, [FeatureProcessedEmbeddingBagCollection])
    prepared = prepare(module, tables={"dtype": "float32"})
    specs = [spec for found in lookups(prepared) for spec in found.operator.embedding_specs]
    assert [spec[:2] for spec in specs] == [("t_user", 50), ("t_movie", 7)]
    inputs = {
        "id_list_features.lengths": torch.tensor([2, 1], dtype=torch.int32),
        "id_list_features.values": torch.tensor([49, 3, 6], dtype=torch.int32),
    }
    torch.testing.assert_close(
        prepared(inputs)["pooled"], expected(inputs)["pooled"], atol=1e-6, rtol=0
    )
