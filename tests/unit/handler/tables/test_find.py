"""What each of TorchRec's collections is found to be, at each stage of loading."""

from typing import Any

import pytest
import torch
from torchrec.quant.embedding_modules import EmbeddingBagCollection as QuantizedBags

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_own import (
    OwnMappingFactory,
    OwnTypeFactory,
    PartFactory,
    PartShardedFactory,
    PrunedFactory,
    QuantizedAtOnceFactory,
    ShardedFactory,
)
from tests.support.factories.kinds_pooled import (
    ManagedFactory,
    PositionWeightedEachFactory,
    PositionWeightedFactory,
    SumFactory,
    WeightedFactory,
)
from tests.support.factories.kinds_sequence import ManagedSequenceFactory, SequenceFactory
from tests.support.kinds import KINDS, prepare
from torchrec_handler.archive.format import TableKey
from torchrec_handler.tables.collection import Collections
from torchrec_handler.tables.find import QUANTIZED, find_collections, is_collection, of_type
from torchrec_handler.tables.modules import SHARDERS

BAGS = "torchrec.modules.embedding_modules.EmbeddingBagCollection"
OWN_TYPE = "tests.support.factories.kinds_own.OwnCollection"
ROWS = {"user": 50, "movie": 40}


def transformed(kind: type[KindFactory]) -> torch.nn.Module:
    factory = kind()
    module: torch.nn.Module = factory.run_weights_dependent_transformations(
        factory.run_weights_independent_tranformations(factory.create_predict_module())
    )
    return module


def kinds(collections: Collections) -> dict[str, str]:
    return {one.path: one.kind for one in collections.found}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (SumFactory, {"_module.collection": "float"}),
        (SequenceFactory, {"_module.collection": "float"}),
        (PositionWeightedFactory, {"_module.collection": "float"}),
        (OwnTypeFactory, {"_module.collection": "other"}),
        (OwnMappingFactory, {"_module.collection": "other"}),
        (QuantizedAtOnceFactory, {"_module.collection": "quantized"}),
        (ShardedFactory, {"_module.collection": "sharded"}),
        (
            PartFactory,
            {"_module.pooled.collection": "quantized", "_module.histories.collection": "float"},
        ),
        (
            PartShardedFactory,
            {"_module.pooled.collection": "sharded", "_module.histories.collection": "float"},
        ),
    ],
)
def test_a_factorys_collections_are_told_apart(
    kind: type[KindFactory], expected: dict[str, str]
) -> None:
    collections = find_collections(transformed(kind))
    assert kinds(collections) == expected
    assert collections.is_sharded == ("sharded" in expected.values())


@pytest.mark.parametrize("name", list(KINDS))
def test_loading_turns_float_collections_into_sharded_ones_at_their_place(name: str) -> None:
    module = KINDS[name]().create_predict_module()
    before = find_collections(module)
    after = find_collections(prepare(module))
    wanted = {path: "sharded" if kind == "float" else kind for path, kind in kinds(before).items()}
    assert kinds(after) == wanted
    assert {table.key for one in before.found for table in one.tables} == {
        table.key for one in after.found for table in one.tables
    }
    assert after.ids_below == before.ids_below
    assert after.longest == before.longest
    assert not before.lookups
    assert {
        TableKey(lookup.collection, spec[0])
        for lookup in after.lookups
        for spec in lookup.operator.embedding_specs
    } == {table.key for table in before.float_tables}


def test_a_type_of_the_users_own_is_float_where_it_is_mapped() -> None:
    module = OwnTypeFactory().create_predict_module()
    assert find_collections(module).float_tables == ()
    mapped = find_collections(module, [OWN_TYPE])
    assert kinds(mapped) == {"_module.collection": "float"}
    assert [table.key.table for table in mapped.float_tables] == ["t_user", "t_movie"]


@pytest.mark.parametrize(
    ("kind", "parameter"),
    [
        (SumFactory, "_module.collection.embedding_bags.t_user.weight"),
        (
            PositionWeightedFactory,
            "_module.collection._embedding_bag_collection.embedding_bags.t_user.weight",
        ),
        (QuantizedAtOnceFactory, "_module.collection.embedding_bags.t_user.weight"),
    ],
)
def test_a_table_is_what_its_config_says_at_its_place_in_a_checkpoint(
    kind: type[KindFactory], parameter: str
) -> None:
    collections = find_collections(kind().create_predict_module())
    table = collections.found[0].tables[0]
    assert table.key == TableKey("_module.collection", "t_user")
    assert (table.parameter, table.features, table.rows) == (parameter, ("user",), 50)
    assert collections.parameter(table.key) == parameter
    assert table.config.embedding_dim == 8


def test_a_pruned_table_has_the_rows_that_are_left() -> None:
    (one,) = find_collections(transformed(PrunedFactory)).found
    assert [table.rows for table in one.tables] == [30, 25]
    assert [len(table.weight) for table in one.tables] == [50, 40]
    assert one.ids_below == {"user": 30, "movie": 25}


@pytest.mark.parametrize("kind", [ManagedFactory, ManagedSequenceFactory])
def test_managed_collision_stands_in_front_of_its_collection(kind: type[KindFactory]) -> None:
    collections = find_collections(kind().create_predict_module())
    managed, inner = collections.found[0], collections.found[-1]
    assert (managed.path, managed.kind, managed.is_managed) == ("_module.collection", "other", True)
    assert (inner.path, inner.kind) == ("_module.collection._embedding_module", "float")
    assert len(inner.tables) == 2
    assert collections.ids_below == {}


@pytest.mark.parametrize(
    ("kind", "is_weighted", "is_processed"),
    [
        (SumFactory, False, False),
        (WeightedFactory, True, False),
        (PositionWeightedFactory, True, True),
        (PositionWeightedEachFactory, True, True),
    ],
)
def test_what_reads_or_makes_weights_is_known(
    kind: type[KindFactory], *, is_weighted: bool, is_processed: bool
) -> None:
    module = kind().create_predict_module()
    (one,) = find_collections(module).found
    assert (one.is_weighted, one.is_processed) == (is_weighted, is_processed)
    (sharded,) = find_collections(prepare(module)).found
    assert sharded.is_processed == is_processed


def test_what_a_factory_scripted_is_known_without_tables() -> None:
    """Its ids still have to be rows."""
    before = find_collections(SumFactory().create_predict_module())
    hidden = find_collections(torch.nn.Linear(1, 1)).beside(before)
    assert kinds(hidden) == {"_module.collection": "hidden"}
    assert hidden.float_tables == ()
    assert hidden.ids_below == ROWS
    again = before.beside(before)
    assert kinds(again) == kinds(before)


def test_rows_are_of_collections_only() -> None:
    collections = find_collections(PositionWeightedFactory().create_predict_module())
    assert collections.hold_rows(collections.found[0].tables[0].parameter)
    assert not collections.hold_rows("_module.collection._feature_processors.position_weights.user")
    assert not collections.hold_rows("_module.embeddings.weight")


def test_lookups_beside_collections_are_seen() -> None:
    module = prepare(SumFactory().create_predict_module())
    collections = find_collections(module)
    assert collections.hold_all_lookups(module)
    assert not collections.hold_all_lookups(torch.nn.ModuleList([module]))
    assert not collections.hold_all_lookups(torch.jit.script(torch.nn.Linear(1, 1)))


def test_the_quantized_ones_are_those_that_have_a_sharder() -> None:
    assert set(QUANTIZED) == {sharder.module_type for sharder in SHARDERS}


def test_types_are_found_by_name_and_none_inside_another() -> None:
    module: Any = PositionWeightedFactory().create_predict_module()
    processed = "torchrec.modules.fp_embedding_modules.FeatureProcessedEmbeddingBagCollection"
    assert [path for path, _ in of_type(module, [BAGS])] == [
        "_module.collection._embedding_bag_collection"
    ]
    assert [path for path, _ in of_type(module, [BAGS, processed])] == ["_module.collection"]
    assert [path for path, _ in of_type(module.predict_module.collection, [BAGS, processed])] == [
        ""
    ]


@pytest.mark.parametrize("name", list(KINDS))
def test_every_collection_is_known_as_one_by_itself(name: str) -> None:
    module = KINDS[name]().create_predict_module()
    for stage in (module, prepare(module)):
        for one in find_collections(stage).found:
            assert is_collection(one.module)
    assert not is_collection(torch.nn.Linear(1, 1))
    assert issubclass(QuantizedBags, QUANTIZED)
