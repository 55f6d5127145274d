"""Pieces of tensors: what is missing, and what contradicts itself."""

from pathlib import Path

import pytest
import torch

from torchrec_archiver.checkpoint.pieces import Box, Piece, join
from torchrec_handler.errors import BuildError

ROWS = torch.arange(40.0).view(10, 4)


def piece(rows: slice, columns: slice = slice(0, 4), file: str = "rank0.pt") -> Piece:
    tensor = ROWS[rows, columns].clone()
    box = Box(offsets=(rows.start, columns.start), sizes=tuple(tensor.shape))
    return Piece(box=box, tensor=tensor, file=Path(file))


def joined(pieces: list[Piece], folder: Path) -> torch.Tensor:
    return join("t", ROWS.to("meta"), pieces, "x.pt", folder / "0.bin")


@pytest.mark.parametrize(
    "pieces",
    [
        [piece(slice(0, 10))],
        [piece(slice(6, 10)), piece(slice(0, 6))],
        [piece(slice(0, 10), slice(2, 4)), piece(slice(0, 10), slice(0, 2))],
        [
            piece(slice(0, 5), slice(0, 2)),
            piece(slice(5, 10), slice(0, 2)),
            piece(slice(0, 10), slice(2, 4)),
        ],
        # Replicated, and nothing on a further rank.
        [piece(slice(0, 10)), piece(slice(0, 10), file="rank1.pt"), piece(slice(5, 5))],
    ],
)
def test_pieces_become_one(pieces: list[Piece], tmp_path: Path) -> None:
    assert torch.equal(joined(pieces, tmp_path), ROWS)


def test_what_is_in_one_piece_is_not_copied(tmp_path: Path) -> None:
    whole = piece(slice(0, 10))
    assert joined([whole], tmp_path) is whole.tensor
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "rows 0 to 9 of 10 are missing"),
        ([piece(slice(0, 4))], "rows 4 to 9 of 10 are missing"),
        (
            [piece(slice(at, at + 1)) for at in (1, 4, 5, 8)],
            "rows 0 to 0, 2 to 3, 6 to 7, 9 to 9 of 10 are missing",
        ),
        ([piece(slice(0, 10), slice(0, 3))], "columns 3 to 3 of 4 are missing"),
        (
            [piece(slice(0, 5), slice(0, 2)), piece(slice(5, 10), slice(2, 4))],
            "20 of 40 numbers are missing",
        ),
    ],
)
def test_what_is_missing_is_named(pieces: list[Piece], message: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        joined(pieces, tmp_path)
    assert str(caught.value) == (
        f"weights: t: {message} in x.pt; give the folder that holds the files of all ranks, or "
        "save with torch.distributed.checkpoint"
    )


def test_pieces_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    other = piece(slice(0, 10), file="rank1.pt")
    other.tensor[0] = 7
    with pytest.raises(BuildError) as caught:
        joined([piece(slice(0, 10)), other], tmp_path)
    assert str(caught.value) == (
        "weights: t differs between rank0.pt and rank1.pt; a folder holds one checkpoint in the "
        "files of its ranks: give one file where each is a checkpoint"
    )
    # As many numbers as there should be, but some twice.
    twice = [piece(slice(0, 10), slice(0, 2)), piece(slice(0, 5), slice(1, 4))]
    with pytest.raises(BuildError) as caught:
        joined([*twice, piece(slice(9, 10), slice(0, 4))], tmp_path)
    assert str(caught.value) == "weights: t: pieces overlap in x.pt, expected each row once"


def test_pieces_that_lie_are_refused(tmp_path: Path) -> None:
    """Of a hostile file: outside of the tensor, or of another shape than they say."""
    outside = Piece(box=Box(offsets=(8, 0), sizes=(4, 4)), tensor=ROWS[:4], file=Path("a.pt"))
    with pytest.raises(BuildError) as caught:
        joined([outside], tmp_path)
    assert str(caught.value) == (
        "weights: t: a piece of shape (4, 4) at (8, 0) lies outside of its shape (10, 4) in x.pt"
    )
    before = Piece(box=Box(offsets=(-1, 0), sizes=(10, 4)), tensor=ROWS, file=Path("a.pt"))
    with pytest.raises(BuildError, match=r"at \(-1, 0\) lies outside"):
        joined([before], tmp_path)
    other = Piece(box=Box(offsets=(0, 0), sizes=(10, 4)), tensor=ROWS[:4], file=Path("a.pt"))
    with pytest.raises(BuildError) as caught:
        joined([other], tmp_path)
    assert str(caught.value) == (
        "weights: t: a piece in a.pt has shape (4, 4), but says that it has (10, 4)"
    )
