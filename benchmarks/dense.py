"""TorchRec's own forward and the kernels', on models that users wrote (`benchmarks.models`).

`python -m benchmarks.dense` takes two to four minutes, in one process with one thread, where
contenders take turns (`benchmarks.turns`). The rows of a batch have nothing to do with each other;
"ranked" is a request of one user and so many candidates, which gives the user's inputs once, from
when it is checked until its scores are there. Stock is the same model loaded with `kernels.off:
all`. Figures are to be compared within one run only.
"""

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from benchmarks.models import MODELS, Model
from benchmarks.models.contenders import (
    COMPILED,
    COMPILED_AROUND,
    CONTENDERS,
    STOCK,
    Call,
    Contender,
)
from benchmarks.models.loading import CPU, pack
from benchmarks.turns import Timed, take_turns
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs.json_document import shortened
from torchrec_handler.serve.predict import HostResult

ROWS = (1, 16, 128, 1000)
TURNS = 7
SECONDS = 0.04
"""Of one contender's turn."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One contender's figures on one model."""

    timed: Mapping[str, Timed]
    """By case."""
    difference: float
    """The largest of its scores from stock's."""
    deviation: float
    """The standard deviation of its scores; of several outputs the smallest."""
    load_seconds: float
    first_seconds: float
    """Of its first two calls."""
    megabytes: float


def measure(
    model: Model, names: Sequence[str], rows: Sequence[int], turns: int, seconds: float
) -> dict[str, Figures | str]:
    """Let contenders, stock first, take turns on one model.

    Returns:
        Name -> its figures, or what is wrong with it.
    """
    package = pack(model)
    problems: dict[str, Figures | str] = {}
    contenders: dict[str, Contender] = {}
    cases: dict[str, dict[str, Sequence[Call]]] = {}
    results: dict[str, list[HostResult]] = {}
    for name in names:
        try:
            contender = Contender(name, model, package)
            own = contender.cases(rows)
            # Whatever it compiles for a size of its own, it compiles now.
            results[name] = [calls[0]() for calls in own.values()]
        except Exception as error:
            if name == STOCK:
                raise
            problems[name] = shortened(f"{type(error).__name__}: {error}".partition("\n")[0], 200)
            continue
        contenders[name] = contender
        for title, calls in own.items():
            cases.setdefault(title, {})[name] = calls
    timed = {title: take_turns(calls, turns, seconds) for title, calls in cases.items()}
    return problems | {
        name: Figures(
            timed={title: of_case[name] for title, of_case in timed.items()},
            difference=max(map(_difference, results[STOCK], results[name])),
            deviation=_deviation(results[name][-1]),
            load_seconds=contender.load_seconds,
            first_seconds=contender.first_seconds,
            megabytes=contender.megabytes,
        )
        for name, contender in contenders.items()
    }


def _difference(one: HostResult, other: HostResult) -> float:
    return max(
        float(np.abs(of_one - of_other).max())
        for name, parts in one.items()
        for of_one, of_other in zip(parts, other[name], strict=True)
    )


def _deviation(result: HostResult) -> float:
    return min(float(part.std()) for parts in result.values() for part in parts)


def report(found: Mapping[str, Mapping[str, Figures | str]]) -> Iterator[str]:
    """Lines of markdown: stock's own figures, then of each contender how much faster it is.

    Args:
        found: model -> what `measure` gives.
    """
    stock = {model: _expect(of_model[STOCK]) for model, of_model in found.items()}
    titles = list(next(iter(stock.values())).timed)
    yield f"### {STOCK}: microseconds a call"
    yield ""
    yield from _head(*titles, "deviation", "load, s", "first calls, s", "memory, MB")
    for model, own in stock.items():
        yield _line(
            model,
            *(f"{own.timed[title].median_us:,.0f}" for title in titles),
            f"{own.deviation:.2f}",
            f"{own.load_seconds:.2f}",
            f"{own.first_seconds:.2f}",
            f"{own.megabytes:.1f}",
        )
    for name in next(iter(found.values())):
        if name != STOCK:
            yield ""
            yield f"### {name}: times {STOCK}, and what it takes more"
            yield ""
            yield from _head(*titles, "difference", "load, s", "first calls, s", "memory, MB")
            yield from _compared(titles, stock, {model: own[name] for model, own in found.items()})


def _compared(
    titles: Sequence[str], stock: Mapping[str, Figures], found: Mapping[str, Figures | str]
) -> Iterator[str]:
    good = {model: own for model, own in found.items() if isinstance(own, Figures)}
    for model, own in found.items():
        if isinstance(own, str):
            yield _line(model, own)
            continue
        than = stock[model]
        yield _line(
            model,
            *(f"{own.timed[title].times_first:.2f}" for title in titles),
            f"{own.difference:.1e}",
            f"{own.load_seconds - than.load_seconds:+.2f}",
            f"{own.first_seconds - than.first_seconds:+.2f}",
            f"{own.megabytes - than.megabytes:+.1f}",
        )
    if good:
        means = [
            statistics.geometric_mean(own.timed[title].times_first for own in good.values())
            for title in titles
        ]
        yield _line("**geometric mean**", *(f"**{mean:.2f}**" for mean in means), *[""] * 4)


def _expect(figures: Figures | str) -> Figures:
    if isinstance(figures, str):
        raise TypeError(figures)
    return figures


def _head(*columns: str) -> Iterator[str]:
    yield _line("rows", *columns)
    yield _line("---", *["---:"] * len(columns))


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(given: Sequence[str] | None = None) -> None:
    """Measure and print."""
    names = [model.name for model in MODELS]
    compiled = [COMPILED, COMPILED_AROUND]
    kernels = [name for name in CONTENDERS if name not in {STOCK, *compiled}]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dense", description=__doc__)
    parser.add_argument("--models", nargs="+", default=names, choices=names)
    parser.add_argument("--contenders", nargs="+", default=kernels, choices=kernels)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of one contender's turn")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    arguments = parser.parse_args(given)
    contenders = [STOCK, *(compiled if arguments.compile else []), *arguments.contenders]
    become_worker(Options(threads=1), CPU)
    console = Console(stderr=True)
    found = {}
    for model in MODELS:
        if model.name in arguments.models:
            console.print(f"{model.name} …")
            found[model.name] = measure(
                model, contenders, arguments.rows, arguments.turns, arguments.seconds
            )
    print("\n".join(report(found)))  # noqa: T201  to be copied


if __name__ == "__main__":
    main()
