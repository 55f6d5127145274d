"""Features with batches of their own are looked up as the float model looks them up."""

import copy
from typing import Any

import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_ranking import FEATURES
from tests.support.kinds import KINDS, prepare, random_batch
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.registry import replace_forwards
from torchrec_handler.options import Kernels

KEYS = ("user", "item", "genre", "place")
"""The last one is of no table."""
STRIDES = (1, 4, 2, 3)
ROWS = 4
INVERSE = torch.tensor([[0, 0, 0, 0], [3, 0, 1, 2], [0, 1, 1, 0], [2, 1, 0, 0]])
FLOAT32 = {"dtype": "float32"}
TARGET = Target(device=torch.device("cpu"), dtype="float32")


def pooled(pooling: PoolingType = PoolingType.SUM, *, weighted: bool = False) -> Any:
    """Tables of several widths, one of two features, whose order is not the keys'."""
    tables = [
        EmbeddingBagConfig(
            name=f"t_{number}",
            embedding_dim=width,
            num_embeddings=12,
            feature_names=list(features),
            pooling=pooling,
        )
        for number, (features, width) in enumerate(
            ((("genre",), 8), (("user", "item"), 4), (("item",), 4))
        )
    ]
    return seeded(EmbeddingBagCollection(tables=tables, is_weighted=weighted))


def sequences() -> Any:
    tables = [
        EmbeddingConfig(name="t_0", embedding_dim=4, num_embeddings=12, feature_names=["item"]),
        EmbeddingConfig(
            name="t_1", embedding_dim=4, num_embeddings=12, feature_names=["user", "genre"]
        ),
    ]
    return seeded(EmbeddingCollection(tables=tables))


def seeded(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return torch.nn.ModuleList([module]).requires_grad_(requires_grad=False)


def features(strides: tuple[int, ...] = STRIDES, **arguments: Any) -> KeyedJaggedTensor:
    """Lists of 0 to 2 ids, with weights."""
    random = torch.Generator().manual_seed(3)
    lengths = torch.randint(0, 3, (sum(strides),), generator=random, dtype=torch.int32)
    lengths[0] = 2
    count = int(lengths.sum())
    return KeyedJaggedTensor(
        keys=list(KEYS),
        values=torch.randint(0, 12, (count,), generator=random),
        lengths=lengths,
        weights=torch.rand(count, generator=random),
        **arguments,
    )


def variable(*, inverse: torch.Tensor | None = INVERSE) -> KeyedJaggedTensor:
    return features(
        stride_per_key_per_rank=[[stride] for stride in STRIDES],
        inverse_indices=None if inverse is None else (list(KEYS), inverse),
    )


def assert_as_float(module: Any, given: KeyedJaggedTensor, **prepared: Any) -> Any:
    """A collection, ready to serve, and directly called too, gives what the float one gives."""
    expected = module[0](given)
    served: Any = prepare(copy.deepcopy(module), tables=FLOAT32, **prepared)
    for _ in range(2):
        received = served[0](given)
        assert received.keys() == expected.keys()
        for key in expected.keys():  # noqa: SIM118  a KeyedTensor is no dict
            assert_same(received[key], expected[key])
        replace_forwards(served, TARGET, Kernels())
    return expected


def assert_same(received: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(received, expected, atol=1e-6, rtol=0)
    else:
        torch.testing.assert_close(received.values(), expected.values(), atol=1e-6, rtol=0)
        assert received.lengths().tolist() == expected.lengths().tolist()


@pytest.mark.parametrize(
    "sharding", [{}, {"world_size": 2}, {"type": "row_wise", "world_size": 2}], ids=str
)
@pytest.mark.parametrize(
    "module",
    [pooled(), pooled(PoolingType.MEAN), pooled(weighted=True)],
    ids=["sum", "mean", "weighted"],
)
def test_pooled_features_have_batches_of_their_own(
    module: torch.nn.Module, sharding: dict[str, Any]
) -> None:
    expected = assert_as_float(module, variable(), sharding=sharding)
    assert expected.values().shape == (ROWS, 20)
    assert expected.values().unique(dim=0).shape[0] == ROWS


def test_lists_may_be_shared_where_all_features_have_as_many() -> None:
    """Inverse indices alone, without strides."""
    rows = torch.tensor([[1, 0, 1, 1, 0]] * 4)
    given = features((2, 2, 2, 2), inverse_indices=(list(KEYS), rows))
    expected = assert_as_float(pooled(), given)
    assert expected.values().shape == (5, 20)


def test_batches_may_be_of_several_ranks() -> None:
    given = features(
        stride_per_key_per_rank=[[1, 0], [2, 2], [0, 2], [3, 0]],
        inverse_indices=(list(KEYS), INVERSE),
    )
    assert_as_float(pooled(), given)


def test_a_feature_without_a_table_may_have_more_lists() -> None:
    """Nothing says then which rows they are for, and nobody asks."""
    given = KeyedJaggedTensor(
        keys=["item", "user", "genre", "place"],
        values=torch.arange(7),
        lengths=torch.tensor([1, 0, 1, 1, 2, 0, 0, 1, 1]),
        stride_per_key_per_rank=[[2], [2], [2], [3]],
    )
    assert assert_as_float(pooled(), given).values().shape == (2, 20)


def test_lists_of_unknown_rows_are_refused() -> None:
    served: Any = prepare(pooled())
    with pytest.raises(ValueError, match=r"^KeyedJaggedTensor") as caught:
        served[0](variable(inverse=None))
    assert str(caught.value) == (
        "KeyedJaggedTensor: received lists of {'genre': 2, 'user': 1, 'item': 4} rows by feature "
        "and no inverse_indices, expected as many of each feature, or inverse_indices"
    )


@pytest.mark.parametrize("inverse", [None, INVERSE], ids=["lists", "rows"])
@pytest.mark.parametrize("sharding", [{}, {"type": "row_wise", "world_size": 2}], ids=str)
def test_sequences_have_batches_of_their_own(
    sharding: dict[str, Any], inverse: torch.Tensor | None
) -> None:
    expected = assert_as_float(sequences(), variable(inverse=inverse), sharding=sharding)
    assert [len(found.lengths()) for found in expected.values()] == [4, 1, 2]


@pytest.mark.parametrize("name", ["managed", "shared"])
def test_models_of_every_kind_hold_a_user_once(name: str) -> None:
    """Whatever stands around the collection."""
    model: Any = KINDS[name]().create_predict_module()
    served: Any = prepare(copy.deepcopy(model), tables=FLOAT32)
    replace_forwards(served, TARGET, Kernels())
    keys = model.predict_module.features
    lengths = torch.tensor([2] + [1] * ROWS * (len(keys) - 1))
    given = KeyedJaggedTensor(
        keys=keys,
        values=torch.arange(1, 1 + int(lengths.sum())) % 10,
        lengths=lengths,
        stride_per_key_per_rank=[[1], *[[ROWS]] * (len(keys) - 1)],
        inverse_indices=(
            keys,
            torch.stack(
                [torch.zeros(ROWS, dtype=torch.int64), *[torch.arange(ROWS)] * (len(keys) - 1)]
            ),
        ),
    )
    (expected, _), (received, _) = model.predict_module(given), served.predict_module(given)
    assert expected.unique().numel() > 1
    torch.testing.assert_close(received, expected, atol=1e-6, rtol=0)


def test_dlrm_holds_a_user_once() -> None:
    """It looks features up into the place where they interact, if each row has its own."""
    model: Any = KINDS["dlrm"]().create_predict_module()
    served: Any = prepare(copy.deepcopy(model), tables=FLOAT32)
    replace_forwards(served, TARGET, Kernels())
    batch = random_batch(KINDS["dlrm"], rows=ROWS)
    keys = FEATURES
    inverse = torch.tensor([[0] * ROWS] * len(keys))
    expected: set[float] = set()
    for strides in ([[1]] * len(keys), None):
        given = KeyedJaggedTensor(
            keys=keys,
            values=torch.arange(len(keys)),
            lengths=torch.ones(len(keys), dtype=torch.int32),
            stride_per_key_per_rank=strides,
            inverse_indices=(keys, inverse),
        )
        dense = batch["float_features"]
        wanted = model.predict_module(dense, given)
        torch.testing.assert_close(served.predict_module(dense, given), wanted, atol=1e-6, rtol=0)
        expected |= set(wanted.flatten().tolist())
    assert len(expected) == ROWS
