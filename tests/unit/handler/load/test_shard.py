"""Sharding changes where tables lie, never an answer."""

import copy
from typing import Any

import pytest
import torch
from torch.distributed import _remote_device  # type: ignore[attr-defined]  # of plans
from torchrec.inference.modules import PredictModule, quantize_inference_model
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_own import PrunedFactory
from tests.support.factories.kinds_pooled import (
    ByPositionFactory,
    MeanFactory,
    PositionWeightedFactory,
    SumFactory,
    WidthsFactory,
)
from tests.support.factories.kinds_sequence import SequenceFactory
from tests.support.kinds import (
    KINDS,
    assert_close,
    assert_equal,
    plan_of,
    prepare,
    quantized,
    random_batch,
    shard_all,
    torchrec_quantized,
)
from torchrec_handler.errors import OptionError
from torchrec_handler.load.quantize import quantize
from torchrec_handler.options import Options, Sharding, Tables
from torchrec_handler.tables.find import find_collections
from torchrec_handler.tables.rows import DATA_TYPES

# TorchRec's own quantized form of these reads its inputs, or gives its values, in an order that
# is not the float model's; the other kind has the same weights and does not depend on it.
SAME_WEIGHTS = {"by-position": "widths", "position-weighted-each": "position-weighted"}


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", list(KINDS))
def test_a_table_wise_model_answers_bit_for_bit_as_the_quantized_one(
    name: str, world_size: int
) -> None:
    """Also one that reads its features by position, over more devices than tables."""
    kind = KINDS[name]
    sharded = prepare(kind().create_predict_module(), sharding={"world_size": world_size})
    expected = torchrec_quantized(KINDS[SAME_WEIGHTS.get(name, name)])
    assert_equal(sharded, expected, random_batch(kind))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in KINDS if "position-weighted" not in name])
def test_a_row_wise_model_answers_as_the_quantized_one(name: str, world_size: int) -> None:
    """The sums of shards are added in another order, so sums may round differently."""
    kind = KINDS[name]
    sharding = {"world_size": world_size, "type": "row_wise"}
    sharded = prepare(kind().create_predict_module(), sharding=sharding)
    expected = torchrec_quantized(KINDS[SAME_WEIGHTS.get(name, name)])
    assert_close(sharded, expected, random_batch(kind))


def test_a_row_wise_sequence_answers_bit_for_bit() -> None:
    """Nothing is added up, so nothing rounds."""
    sharded = prepare(
        SequenceFactory().create_predict_module(), sharding={"world_size": 2, "type": "row_wise"}
    )
    assert_equal(sharded, torchrec_quantized(SequenceFactory), random_batch(SequenceFactory))


@pytest.mark.parametrize("sharding_type", ["table_wise", "row_wise"])
@pytest.mark.parametrize("dtype", list(DATA_TYPES))
@pytest.mark.parametrize("kind", [SumFactory, MeanFactory, SequenceFactory])
def test_tables_of_every_data_type_shard(
    kind: type[KindFactory], dtype: str, sharding_type: str
) -> None:
    """Float tables have no scales, which TorchRec's sharded state_dict asks for."""
    sharded = prepare(
        kind().create_predict_module(),
        tables={"dtype": dtype},
        sharding={"world_size": 2, "type": sharding_type},
    )
    assert_close(sharded, torchrec_quantized(kind, dtype), random_batch(kind))


@pytest.mark.parametrize("kind", [ByPositionFactory, WidthsFactory])
def test_tables_of_one_collection_may_be_sharded_and_stored_differently(
    kind: type[KindFactory],
) -> None:
    """Groups of tables come back in the order of the collection's configs."""
    per_table = {"t_user": "float32", "t_tag": "int4"}
    sharded = prepare(
        kind().create_predict_module(),
        tables={"per_table": per_table},
        sharding={"world_size": 2, "per_table": {"t_genre": "row_wise", "t_movie": "row_wise"}},
    )
    expected = quantize_inference_model(
        WidthsFactory().create_predict_module(),
        per_table_weight_dtype={name: DATA_TYPES[dtype].torch for name, dtype in per_table.items()},
    )
    assert_close(sharded, expected, random_batch(kind))


def test_a_row_wise_mean_counts_the_ids_of_all_shards() -> None:
    """One id in each shard: the mean is not the sum of the shards' means."""
    module = MeanFactory().create_predict_module()
    table = module.predict_module.collection.embedding_bags["t_user"].weight.detach()
    inputs = {
        "id_list_features.lengths": torch.tensor([2, 0], dtype=torch.int32),
        "id_list_features.values": torch.tensor([0, 49], dtype=torch.int32),
    }
    expected = torch.cat([(table[0] + table[49]) / 2, torch.zeros(8)])
    sharded = prepare(
        module,
        tables={"dtype": "float32"},
        sharding={"world_size": 2, "type": "row_wise"},
    )
    torch.testing.assert_close(sharded(inputs)["pooled"][0], expected, atol=1e-6, rtol=0)


def test_a_pruned_table_shards_row_wise_by_the_rows_it_keeps() -> None:
    pruned = PrunedFactory()
    module = pruned.run_weights_independent_tranformations(pruned.create_predict_module())
    expected = quantize_inference_model(copy.deepcopy(module))
    sharded = prepare(module, sharding={"world_size": 2, "type": "row_wise"})
    assert_close(sharded, expected, random_batch(PrunedFactory))


def test_no_table_is_allocated_on_the_cpu() -> None:
    """A table of 2 TiB shards in an instant: its rows are mapped afterwards."""
    config = EmbeddingBagConfig(
        name="t", num_embeddings=2**31 - 1, embedding_dim=1024, feature_names=["f"]
    )
    module = PredictModule(
        torch.nn.ModuleList([EmbeddingBagCollection(tables=[config], device=torch.device("meta"))])
    )
    quantize(module, find_collections(module), Tables(), {})
    sharded, _ = shard_all(module, Sharding(world_size=2, type="row_wise"))
    assert [
        lookup.operator.weights_host.is_meta for lookup in find_collections(sharded).lookups
    ] == [True, True]


def test_a_model_that_the_planner_cannot_place_is_refused() -> None:
    config = EmbeddingBagConfig(
        name="t", num_embeddings=2**31 - 1, embedding_dim=2**20, feature_names=["f"]
    )
    module = PredictModule(
        torch.nn.ModuleList([EmbeddingBagCollection(tables=[config], device=torch.device("meta"))])
    )
    quantize(module, find_collections(module), Tables(), {})
    with pytest.raises(OptionError) as caught:
        shard_all(module, Sharding())
    assert str(caught.value).startswith("torchrec.sharding: TorchRec's planner finds no plan: ")


def test_a_module_without_tables_is_left_alone() -> None:
    module = torch.nn.Linear(1, 1)
    assert shard_all(module, Sharding()) == (module, None)


def test_constraints_of_unknown_tables_are_refused() -> None:
    with pytest.raises(OptionError) as caught:
        shard_all(quantized(SumFactory), Sharding(per_table={"users": "row_wise"}))
    assert str(caught.value) == (
        "torchrec.sharding.per_table: names users, but the tables to shard are t_user, t_movie"
    )
    with pytest.raises(OptionError) as caught:
        shard_all(torch.nn.Linear(1, 1), Sharding(per_table={"users": "row_wise"}))
    assert str(caught.value) == (
        "torchrec.sharding.per_table: names users, but the tables to shard are none"
    )


def test_position_weighted_tables_cannot_be_row_wise() -> None:
    """Nor by a plan: TorchRec would take an id's position in its shard."""
    message = (
        "torchrec.sharding: table 't_movie' is row_wise, expected table_wise: its ids are weighted "
        "by their position, which a shard of its rows cannot tell"
    )
    with pytest.raises(OptionError) as caught:
        shard_all(quantized(PositionWeightedFactory), Sharding(per_table={"t_movie": "row_wise"}))
    assert str(caught.value) == message
    plan = plan_of(SumFactory, per_table={"t_movie": "row_wise"})
    with pytest.raises(OptionError) as caught:
        shard_all(quantized(PositionWeightedFactory), Sharding(plan="plan.pkl"), plan)
    assert str(caught.value) == message


def refused(plan: Any, **options: Any) -> str:
    with pytest.raises(OptionError) as caught:
        shard_all(quantized(SumFactory), Sharding(plan="plan.pkl", **options), plan)
    return str(caught.value)


def test_a_column_wise_plan_is_refused() -> None:
    plan = plan_of(SumFactory)
    plan.plan["_module.collection"]["t_movie"].sharding_type = "column_wise"
    assert refused(plan) == (
        "torchrec.sharding.plan: plan.pkl has table 't_movie' column_wise, expected table_wise or "
        "row_wise; a quantized row has one scale and cannot be cut"
    )


def test_a_plan_of_other_tables_is_refused() -> None:
    plan = plan_of(SumFactory)
    placed = plan.plan["_module.collection"]
    placed["t_item"] = placed.pop("t_movie")
    assert refused(plan) == (
        "torchrec.sharding.plan: plan.pkl lacks _module.collection.t_movie and names "
        "_module.collection.t_item in vain"
    )


def test_a_plan_for_more_devices_is_refused() -> None:
    plan = plan_of(SumFactory, world_size=2)
    assert refused(plan) == (
        "torchrec.sharding.plan: plan.pkl has table 't_movie' on rank 1 of cpu, expected a rank "
        "below the world size of 1, of cpu"
    )


def test_a_plan_for_other_devices_is_refused() -> None:
    plan = plan_of(SumFactory)
    for entry in plan.plan["_module.collection"].values():
        entry.sharding_spec.shards[0].placement = _remote_device("rank:0/cuda:0")
    assert refused(plan) == (
        "torchrec.sharding.plan: plan.pkl has table 't_user' on rank 0 of cuda, expected a rank "
        "below the world size of 1, of cpu"
    )


def test_a_config_that_is_no_plan_is_refused() -> None:
    assert refused({"t_user": "row_wise"}) == (
        "torchrec.sharding.plan: plan.pkl holds dict, expected a ShardingPlan"
    )


def test_answers_in_another_precision_stay_so() -> None:
    """The sharded lookups give what the quantized ones were made to give."""
    options = Options.model_validate({"tables": {"output_dtype": "float16"}})
    sharded = prepare(
        ByPositionFactory().create_predict_module(),
        tables=options.tables.model_dump(),
        sharding={"world_size": 2, "type": "row_wise"},
    )
    model: Any = sharded.predict_module
    pooled: Any = {}
    model.over.register_forward_pre_hook(lambda _, args: pooled.update(value=args[0]))
    model.over.half()
    sharded(random_batch(ByPositionFactory))
    assert pooled["value"].dtype == torch.float16
