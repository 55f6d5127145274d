"""What travels of pooled lookups, and what comes of it."""

import pytest
import torch

from torchrec_handler.tables.compact import LEAST_LISTS, PAUSE, Compact, Compacting, kept

FEATURES, ROWS, WIDTH = 3, 40, 4
TABLES = torch.randn(FEATURES, 50, WIDTH, generator=torch.Generator().manual_seed(0))


def pooled(ids: torch.Tensor, offsets: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """[B, F * D], as a lookup gives it."""
    rows = (offsets.numel() - 1) // FEATURES
    found = torch.zeros(rows, FEATURES, WIDTH)
    for at in range(FEATURES * rows):
        for place in range(int(offsets[at]), int(offsets[at + 1])):
            scale = 1.0 if weights is None else weights[place]
            found[at % rows, at // rows] += TABLES[at // rows, ids[place]] * scale
    return found.view(rows, -1)


def lists(lengths: torch.Tensor, most: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, most, (int(lengths.sum()),), generator=generator, dtype=torch.int32)
    return ids, torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))


def travelled(found: Compact) -> torch.Tensor:
    there = pooled(found.ids, found.offsets, found.weights)
    rows = kept(there, found.offsets)
    assert rows.shape == (found.count, WIDTH)
    return found.expanded(rows, FEATURES)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_empty_lists_do_not_travel(*, is_weighted: bool) -> None:
    lengths = torch.randint(0, 3, (FEATURES * ROWS,), generator=torch.Generator().manual_seed(2))
    lengths[ROWS // 2 : 2 * ROWS] = 0
    ids, offsets = lists(lengths)
    weights = torch.rand(ids.numel()) if is_weighted else None
    found = Compacting(FEATURES)(ids, offsets, weights)
    assert found is not None
    assert found.count == int((lengths > 0).sum())
    expected = pooled(ids, offsets, weights)
    assert torch.equal(travelled(found), expected)


@pytest.mark.parametrize("empty", [0, 7])
def test_an_id_travels_once_a_feature(empty: int) -> None:
    lengths = torch.ones(FEATURES * ROWS, dtype=torch.int64)
    lengths[:empty] = 0
    ids, offsets = lists(lengths, most=5)
    found = Compacting(FEATURES)(ids, offsets, None)
    assert found is not None
    assert found.count == found.ids.numel() <= 5 * FEATURES
    assert torch.equal(travelled(found), pooled(ids, offsets, None))


def test_weights_keep_ids_apart() -> None:
    ids, offsets = lists(torch.ones(FEATURES * ROWS, dtype=torch.int64), most=5)
    assert Compacting(FEATURES)(ids, offsets, torch.rand(ids.numel())) is None


def test_where_little_would_be_left_out_it_all_travels() -> None:
    ids = torch.arange(FEATURES * ROWS) % ROWS
    offsets = torch.arange(FEATURES * ROWS + 1)
    assert Compacting(FEATURES)(ids, offsets, None) is None
    few = torch.zeros(LEAST_LISTS - 1, dtype=torch.int64)
    assert Compacting(1)(few, torch.arange(LEAST_LISTS), None) is None


def test_repeated_ids_are_not_looked_for_each_time() -> None:
    compacting = Compacting(FEATURES)
    every = torch.arange(FEATURES * ROWS) % ROWS
    offsets = torch.arange(FEATURES * ROWS + 1)
    assert compacting(every, offsets, None) is None
    found = [compacting(every * 0, offsets, None) for _ in range(PAUSE + 1)]
    assert found[:-1] == [None] * PAUSE
    assert found[-1] is not None
    assert found[-1].count == FEATURES
