"""A forward guessed by widths."""

import pytest

from torchrec_archiver.draft.guess import Pooled, guess_forward
from torchrec_archiver.draft.layers import layers

BAGS = Pooled("tables", width=16, is_sequence=False)
SEQUENCES = Pooled("", width=16, is_sequence=True)
TABLES = "tables = self.tables(ids).values()"


def linear(**widths: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Shapes of layers, each by what it takes and gives."""
    return {f"{name}.weight": (gives, takes) for name, (takes, gives) in widths.items()} | {
        f"{name}.bias": (gives,) for name, (_, gives) in widths.items()
    }


@pytest.mark.parametrize(
    ("shapes", "numbers", "lines"),
    [
        (
            linear(first=(16, 8), second=(8, 1)),
            0,
            [
                TABLES,
                "first = self.first(tables)",
                "second = self.second(first)",
                'return {"default": second.reshape(-1)}',
            ],
        ),
        (
            linear(dense_arch=(3, 16), over=(32, 2)),
            3,
            [
                TABLES,
                "dense_arch = self.dense_arch(numbers)",
                "over = self.over(torch.cat([dense_arch, tables], dim=1))",
                'return {"default": over}',
            ],
        ),
        (
            linear(over=(20, 1)),
            4,
            [
                TABLES,
                "over = self.over(torch.cat([numbers, tables], dim=1))",
                'return {"default": over.reshape(-1)}',
            ],
        ),
        (
            linear(wide=(16, 1), deep=(16, 1)),
            0,
            [
                TABLES,
                "wide = self.wide(tables)",
                "deep = self.deep(tables)",
                'return {"deep": deep.reshape(-1), "wide": wide.reshape(-1)}',
            ],
        ),
        (
            linear(ids=(16, 4), lambda_=(4, 4)),
            0,
            [
                TABLES,
                "ids_ = self.ids(tables)",
                "lambda_ = self.lambda_(ids_)",
                'return {"default": lambda_}',
            ],
        ),
    ],
    ids=["a chain", "numbers by a name", "numbers by what lacks", "two of one", "taken names"],
)
def test_what_has_the_width_is_taken(
    shapes: dict[str, tuple[int, ...]], numbers: int, lines: list[str]
) -> None:
    guess = guess_forward(layers(shapes, {"tables": []}), [BAGS])
    assert list(guess.lines) == lines
    assert guess.numbers == numbers
    assert not guess.left_out


def test_what_fits_nowhere_is_left_out() -> None:
    shapes = {**linear(context=(3, 8)), "emb.weight": (5, 2), "scale": (2,)}
    guess = guess_forward(layers(shapes, {"": []}), [SEQUENCES])
    assert list(guess.lines) == [
        "tables = torch.cat([v.to_padded_dense().sum(1) for v in self(ids).values()], dim=1)",
        'return {"default": tables}',
    ]
    assert guess.left_out == [
        "emb, which takes no numbers",
        "scale, which takes no numbers",
        "context, which takes 3 numbers where nothing else has as many",
    ]
