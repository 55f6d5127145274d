"""Lookups that are called directly give what TorchRec and FBGEMM give, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec.distributed.quant_embeddingbag import ShardedQuantEmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from tests.support.factories.kinds_base import KindFactory
from tests.support.factories.kinds_own import PrunedFactory, ShardedFactory
from tests.support.factories.kinds_pooled import (
    MeanFactory,
    PositionWeightedFactory,
    SharedFactory,
    SumFactory,
    WeightedFactory,
    WidthsFactory,
)
from tests.support.factories.kinds_ranking import DlrmFactory
from tests.support.kinds import prepare, random_batch
from torchrec_handler.kernels.direct import lookup, parts, why_not
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.registry import replace_forwards
from torchrec_handler.options import Kernels
from torchrec_handler.tables.modules import ShardedBags

TWO_DTYPES = {"per_table": {"t_movie": "float16"}}
TWO_DEVICES = {"world_size": 2}
DIRECT: list[tuple[type[KindFactory], dict[str, Any]]] = [
    (SumFactory, {}),
    (SumFactory, {"tables": {"dtype": "float32"}}),
    (SumFactory, {"tables": {"dtype": "float16"}}),
    (SumFactory, {"tables": {"dtype": "int4"}}),
    (SumFactory, {"sharding": TWO_DEVICES}),
    (MeanFactory, {}),
    (WeightedFactory, {}),
    (WeightedFactory, {"sharding": TWO_DEVICES}),
    (SharedFactory, {}),
    (SharedFactory, {"tables": TWO_DTYPES}),
    (WidthsFactory, {}),
    (WidthsFactory, {"tables": TWO_DTYPES, "sharding": TWO_DEVICES}),
]
ROW_WISE = {"sharding": {"world_size": 2, "type": "row_wise"}}
INDIRECT: list[tuple[type[KindFactory], dict[str, Any]]] = [
    (SumFactory, ROW_WISE),
    (SumFactory, {"sharding": {"world_size": 2, "per_table": {"t_user": "row_wise"}}}),
    (MeanFactory, ROW_WISE),
    (PositionWeightedFactory, {}),
]


def call_directly(module: torch.nn.Module) -> dict[str, str]:
    """What of it is declined, by path, and why."""
    target = Target(device=torch.device("cpu"), dtype="float32")
    report = replace_forwards(module, target, Kernels(off=["dlrm", "crossnet", "linear"]))
    return {found.path: found.why for found in report.declined}


def collections(module: torch.nn.Module) -> list[Any]:
    return [
        found for found in module.modules() if isinstance(found, ShardedQuantEmbeddingBagCollection)
    ]


def assert_same(received: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert received.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(received[name], value), name


@pytest.mark.parametrize("rows", [1, 2, 70])
@pytest.mark.parametrize(("kind", "options"), DIRECT)
def test_every_table_wise_collection(
    kind: type[KindFactory], options: dict[str, Any], rows: int
) -> None:
    """Of any pooling, width, data type and number of devices, with empty lists of ids too."""
    inputs = random_batch(kind, rows)
    module = prepare(kind().create_predict_module(), **options)
    expected = module(inputs)
    call_directly(module)
    assert all("forward" in vars(found) for found in collections(module))
    assert_same(module(inputs), expected)


@pytest.mark.parametrize(("kind", "options"), INDIRECT)
def test_other_collections_stay_as_they_are(
    kind: type[KindFactory], options: dict[str, Any]
) -> None:
    """Whose ids go to several places, or are changed on their way."""
    module = prepare(kind().create_predict_module(), **options)
    declined = call_directly(module)
    assert collections(module)
    assert not any("forward" in vars(found) for found in collections(module))
    known = [found for found in collections(module) if type(found) is ShardedBags]
    assert list(declined.values()) == [
        "has row_wise tables, whose ids go to several places" for _ in known
    ]


def test_a_collection_that_its_factory_sharded_is_called_directly_too() -> None:
    inputs = random_batch(SumFactory, 20)
    module = ShardedFactory().create_predict_module()
    expected = module(inputs)
    call_directly(module)
    assert ["forward" in vars(found) for found in collections(module)] == [True]
    assert_same(module(inputs), expected)


def test_pruned_rows_are_found() -> None:
    """Where FBGEMM itself turns ids into rows, it is asked to."""
    inputs = {
        "id_list_features.lengths": torch.ones(8, dtype=torch.int32),
        "id_list_features.values": torch.arange(8, dtype=torch.int32),
    }
    factory = PrunedFactory()
    pruned = factory.run_weights_independent_tranformations(factory.create_predict_module())
    module = prepare(pruned)
    expected = module(inputs)
    call_directly(module)
    assert_same(module(inputs), expected)
    (operator,) = collections(module)[0].tbes_configs()
    operator.index_remappings_array = torch.zeros(1, dtype=torch.int32)
    assert why_not(collections(module)[0]) == "has pruned tables, whose rows FBGEMM finds by itself"


def table_wise() -> tuple[ShardedBags, ShardedBags]:
    """A collection as it is, and one that is called directly."""
    plain, direct = (
        collections(prepare(SharedFactory().create_predict_module(), tables=TWO_DTYPES))[0]
        for _ in range(2)
    )
    call_directly(direct)
    return plain, direct


FEATURES = ["user", "clicked", "bought", "genre"]


def features(
    keys: list[str], lengths: list[int], dtypes: tuple[torch.dtype, ...] = (torch.int32,) * 2
) -> KeyedJaggedTensor:
    """Ids that count up to the ten rows of the smallest table, again and again."""
    return KeyedJaggedTensor(
        keys=keys,
        lengths=torch.tensor(lengths, dtype=dtypes[0]),
        values=torch.arange(sum(lengths), dtype=dtypes[1]) % 10,
    )


def assert_equal(received: KeyedTensor, expected: KeyedTensor) -> None:
    assert received.keys() == expected.keys()
    assert received.length_per_key() == expected.length_per_key()
    assert received.offset_per_key() == expected.offset_per_key()
    assert torch.equal(received.values(), expected.values())
    assert_same(received.to_dict(), expected.to_dict())


@given(data=st.data(), rows=st.integers(1, 40), keys=st.permutations(FEATURES))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_features_in_any_order(data: st.DataObject, rows: int, keys: list[str]) -> None:
    plain, direct = table_wise()
    for _ in range(2):
        lengths = data.draw(st.lists(st.integers(0, 5), min_size=4 * rows, max_size=4 * rows))
        assert_equal(direct(features(keys, lengths)), plain(features(keys, lengths)))


@pytest.mark.parametrize("values", [torch.int32, torch.int64])
@pytest.mark.parametrize("lengths", [torch.int32, torch.int64])
def test_ids_and_lengths_of_either_type(lengths: torch.dtype, values: torch.dtype) -> None:
    plain, direct = table_wise()
    of_types = features(FEATURES, [2, 0, 1, 3], (lengths, values))
    assert_equal(direct(of_types), plain(of_types))


def test_weights_that_are_missing_are_missed() -> None:
    plain, direct = (
        collections(prepare(WeightedFactory().create_predict_module()))[0] for _ in range(2)
    )
    call_directly(direct)
    for found in (plain, direct):
        with pytest.raises(AssertionError) as raised:
            found(features(["tags", "clicks"], [1, 1]))
        assert str(raised.value) == "This (Keyed)JaggedTensor doesn't have weights."


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tables", ["float32", "float16", "int8", "int4", "int2"])
def test_room_is_left_open_and_the_result_is_of_the_type_asked_for(
    tables: str, dtype: torch.dtype
) -> None:
    module = prepare(DlrmFactory().create_predict_module(), tables={"dtype": tables})
    (bags,) = collections(module)
    (operator,) = bags.tbes_configs()
    ids = parts(features(["user", "movie", "genre"], [2, 0, 1, 3, 1, 1]), is_weighted=False)
    expected = operator.forward(*ids)
    received = lookup(operator, room=5, dtype=dtype)(*ids)
    assert received.shape == (2, 5 + expected.shape[1])
    assert received.dtype == dtype
    # FBGEMM does not round to even.
    torch.testing.assert_close(received[:, 5:], expected.to(dtype), atol=0, rtol=2**-7)
    assert torch.equal(lookup(operator)(*ids), expected)
