"""A factory's own sharding, and a plan of the package, in an archive."""

import pickle
from pathlib import Path

import pytest
import yaml

from tests.support.factories.kinds_own import PartShardedFactory, ShardedFactory
from tests.support.factories.kinds_pooled import (
    SharedFactory,
    SumFactory,
)
from tests.support.kinds import (
    assert_close,
    assert_equal,
    build,
    load_archive,
    plan_of,
    prepare,
    random_batch,
    shard_all,
    torchrec_quantized,
)
from torchrec_handler.errors import FactoryError
from torchrec_handler.options import Sharding
from torchrec_handler.tables.find import find_collections


def test_a_module_that_its_factory_sharded_is_left_alone(tmp_path: Path) -> None:
    """The options of the archive do not touch it."""
    module = ShardedFactory().create_predict_module()
    assert shard_all(module, Sharding(type="row_wise")) == (module, None)
    predictor = load_archive(build(ShardedFactory, tmp_path))
    assert (predictor.tables, predictor.plan) == (None, None)
    assert_equal(predictor.module, torchrec_quantized(SumFactory), random_batch(SumFactory))


def test_a_module_that_its_factory_sharded_in_part_is_refused(tmp_path: Path) -> None:
    """The rest has no place in the factory's plan."""
    with pytest.raises(FactoryError) as caught:
        build(PartShardedFactory, tmp_path)
    assert str(caught.value) == (
        "the factory sharded _module.pooled.collection, but not _module.histories.collection; "
        "let it shard all collections or none"
    )


def test_a_plan_of_the_package_is_followed(tmp_path: Path) -> None:
    """Over as many devices as it was made for."""
    plan = plan_of(SharedFactory, world_size=2, per_table={"t_movie": "row_wise"})
    placed = plan.plan["_module.collection"]
    placed["t_user"], placed["t_genre"] = placed["t_genre"], placed["t_user"]
    placed["t_user"].sharding_spec.shards[0].shard_sizes[0] = 50
    placed["t_genre"].sharding_spec.shards[0].shard_sizes[0] = 10
    options = {"sharding": {"world_size": 2, "plan": "plan.pkl"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"torchrec": options}))
    (tmp_path / "plan.pkl").write_bytes(pickle.dumps(plan))
    archive = build(
        SharedFactory,
        tmp_path,
        configs={"plan.pkl": tmp_path / "plan.pkl"},
        config_file=tmp_path / "config.yaml",
    )
    predictor = load_archive(archive, **options)
    assert str(predictor.plan) == str(plan)
    on_rank = [
        sorted({spec[0] for spec in lookup.operator.embedding_specs})
        for lookup in find_collections(predictor.module).lookups
    ]
    free = prepare(SharedFactory().create_predict_module(), sharding={"world_size": 2})
    assert on_rank != [
        sorted({spec[0] for spec in lookup.operator.embedding_specs})
        for lookup in find_collections(free).lookups
    ]
    assert_close(predictor.module, torchrec_quantized(SharedFactory), random_batch(SharedFactory))
