"""Every float collection gives way to a quantized one, and what a factory did stays."""

from typing import Any

import pytest
import torch
from torchrec.inference.modules import (
    PredictModule,
    quantize_inference_model,
    set_pruning_data,
)
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_own import (
    OwnTypeFactory,
)
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedEachFactory,
    PositionWeightedFactory,
    SumFactory,
)
from tests.support.factories.kinds_sequence import ManagedSequenceFactory, SequenceFactory
from tests.support.factories.kinds_two_tower import TwoTowerFactory
from tests.support.kinds import assert_equal, prepare, random_batch, stored
from torchrec_handler.errors import FactoryError, OptionError
from torchrec_handler.load.quantize import quantize, to_meta
from torchrec_handler.options import Tables
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.rows import DATA_TYPES

OWN_TYPE = "tests.support.factories.kinds_own.OwnCollection"
QUANTIZED = "torchrec.quant.embedding_modules"


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged by this project: torch warns when it first traces, in any test."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("torchrec_handler")
    ]


def refused(module: torch.nn.Module, **options: Any) -> str:
    tables = Tables(**options)
    with pytest.raises(OptionError) as caught:
        quantize(module, find_collections(module), tables, {})
    return str(caught.value)


def test_tables_are_found_by_their_place_in_a_checkpoint() -> None:
    module = TwoTowerFactory().create_predict_module()
    tables = find_collections(module).float_tables
    assert [(*table.key, table.parameter) for table in tables] == [
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
    assert {table.key.collection for table in find_collections(module).float_tables} == {collection}
    prepared = prepare(module)
    assert {lookup.collection for lookup in find_collections(prepared).lookups} == {collection}


def test_rows_are_set_aside_and_none_is_held_twice() -> None:
    module = SumFactory().create_predict_module()
    expected = {name: value.clone() for name, value in module.predict_module.state_dict().items()}
    rows = to_meta(find_collections(module).float_tables)
    assert list(rows) == [("_module.collection", "t_user"), ("_module.collection", "t_movie")]
    for (_, name), own in rows.items():
        assert torch.equal(own, expected[f"collection.embedding_bags.{name}.weight"])
    assert all(table.weight.is_meta for table in find_collections(module).float_tables)
    assert to_meta(find_collections(module).float_tables) == {}


@pytest.mark.parametrize("dtype", list(DATA_TYPES))
@pytest.mark.parametrize("kind", [SumFactory, SequenceFactory])
def test_every_data_type_answers_as_torchrecs_own_quantized_model(
    kind: type[KindFactory], dtype: str
) -> None:
    expected = quantize_inference_model(
        kind().create_predict_module(), quantization_dtype=DATA_TYPES[dtype].torch
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


def pooled_and_sequence(width: int, rows: torch.Tensor) -> torch.nn.Module:
    """Two collections of a table that is called the same and one that is not."""

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes: Any = {"num_embeddings": len(rows), "embedding_dim": width}
            self.pooled = EmbeddingBagCollection(
                tables=[EmbeddingBagConfig(name="t_odd", feature_names=["odd"], **sizes)]
            )
            self.sequence = EmbeddingCollection(
                tables=[EmbeddingConfig(name="t_seq", feature_names=["odd"], **sizes)]
            )
            with torch.no_grad():
                self.pooled.embedding_bags["t_odd"].weight.copy_(rows)
                self.sequence.embeddings["t_seq"].weight.copy_(rows)

        def forward(self, features: KeyedJaggedTensor) -> dict[str, torch.Tensor]:
            return {
                "default": self.pooled(features).values(),
                "sequence": self.sequence(features)["odd"].values(),
            }

    class Module(PredictModule):
        def predict_forward(self, batch: dict[str, torch.Tensor]) -> Any:
            return self.predict_module(
                KeyedJaggedTensor(
                    keys=["odd"], values=batch["odd.values"], lengths=batch["odd.lengths"]
                )
            )

    return Module(Both(), "cpu")


ODD = {
    "odd.lengths": torch.tensor([2, 0, 1], dtype=torch.int32),
    "odd.values": torch.tensor([1, 2, 0], dtype=torch.int32),
}


@pytest.mark.parametrize(("dtype", "multiple"), [("int8", 2), ("int4", 4), ("int2", 8)])
@pytest.mark.parametrize("width", [*range(1, 17), 1023, 1025])
def test_tables_of_any_width_are_served(
    dtype: str, multiple: int, width: int, caplog: pytest.LogCaptureFixture
) -> None:
    """As float16 where FBGEMM packs no such width, which is said once, with the float's values."""
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    expected = pooled_and_sequence(width, rows)(ODD)
    with caplog.at_level("WARNING"):
        prepared = prepare(pooled_and_sequence(width, rows), tables={"dtype": dtype})
    if width % multiple == 0:
        assert stored(prepared) == {"t_odd": dtype, "t_seq": dtype}
        assert not said(caplog)
        return
    assert stored(prepared) == {"t_odd": "fp16", "t_seq": "fp16"}
    why = f"being {width} wide, where {dtype} packs multiples of {multiple}"
    assert said(caplog) == [
        f"torchrec.tables: stored are t_odd as float16, {why}; t_seq as float16, {why}"
    ]
    torch.testing.assert_close(prepared(ODD), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [("float32", 0.0), ("float16", 2e-3), ("int8", 0.02), ("int4", 0.3), ("int2", 1.4)],
)
@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
@pytest.mark.parametrize("width", [1032, 2048])
def test_tables_wider_than_1024_are_served(
    dtype: str, most: float, sharding: str, width: int
) -> None:
    """Pooled and as sequences, half a step of the quantized rows away at most."""
    rows = torch.randn(3, width, generator=torch.Generator().manual_seed(width)).clamp(-2, 2)
    prepared = prepare(
        pooled_and_sequence(width, rows), tables={"dtype": dtype}, sharding={"type": sharding}
    )
    assert set(stored(prepared).values()) <= {dtype, dtype.replace("float", "fp")}
    expected = pooled_and_sequence(width, rows)(ODD)
    for name, ids in (("default", 2), ("sequence", 1)):
        torch.testing.assert_close(prepared(ODD)[name], expected[name], atol=ids * most, rtol=0)


def test_what_float16_cannot_hold_either_is_float32(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.tensor([[1.0], [70_000.0], [3.0]])
    with caplog.at_level("WARNING"):
        prepared = prepare(pooled_and_sequence(1, rows), tables={"per_table": {"t_odd": "int4"}})
    assert stored(prepared) == {"t_odd": "fp32", "t_seq": "fp32"}
    assert said(caplog) == [
        (
            "torchrec.tables: stored are t_odd as float32, being 1 wide, where int4 packs "
            "multiples of 4; t_seq as float32, being 1 wide, where int8 packs multiples of 2"
        )
    ]
    assert prepared(ODD)["default"].tolist() == [[70_003.0], [0.0], [1.0]]


def test_a_width_that_is_packed_by_its_own_type_is_left_alone() -> None:
    rows = torch.ones(3, 3)
    prepared = prepare(
        pooled_and_sequence(3, rows),
        tables={"dtype": "float32", "per_table": {"t_seq": "float16"}},
    )
    assert stored(prepared) == {"t_odd": "fp32", "t_seq": "fp16"}


def test_what_torchrec_cannot_quantize_is_the_factorys_error() -> None:
    """A position-weighted collection without a module around it cannot be swapped."""
    module = PositionWeightedFactory().collection(torch.device("cpu"))
    assert isinstance(module, FeatureProcessedEmbeddingBagCollection)
    with pytest.raises(FactoryError) as caught:
        quantize(module, find_collections(module), Tables(), {})
    assert str(caught.value) == (
        "quantize_inference_model raised ValueError: not enough values to unpack (expected 2, "
        "got 1)"
    )


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


def test_a_pruned_position_weighted_table_keeps_its_first_rows() -> None:
    module = PositionWeightedFactory().create_predict_module()
    expected = PositionWeightedFactory().create_predict_module()
    set_pruning_data(module, {"t_movie": 7}, [FeatureProcessedEmbeddingBagCollection])
    prepared = prepare(module, tables={"dtype": "float32"})
    specs = [
        spec
        for found in find_collections(prepared).lookups
        for spec in found.operator.embedding_specs
    ]
    assert [spec[:2] for spec in specs] == [("t_user", 50), ("t_movie", 7)]
    inputs = {
        "id_list_features.lengths": torch.tensor([2, 1], dtype=torch.int32),
        "id_list_features.values": torch.tensor([49, 3, 6], dtype=torch.int32),
    }
    torch.testing.assert_close(
        prepared(inputs)["pooled"], expected(inputs)["pooled"], atol=1e-6, rtol=0
    )
