"""`torchrec-archiver compare`: what two versions of a model make of the same requests."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchrec_handler.errors import TorchRecServeError

if TYPE_CHECKING:
    from torchrec_archiver.difference import Difference

HELP = "show how far apart two versions' answers are"
EXAMPLES = """\
torchrec-archiver compare shop-1.0.mar shop-2.0.mar                # on the samples of the first
torchrec-archiver compare shop-1.0.mar shop-2.0.mar --requests requests.jsonl
torchrec-archiver compare float32.mar int8.mar --max-difference 0.01 || echo "too far apart"
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("a", metavar="A", help="a .mar, .tar.gz or folder")
    parser.add_argument("b", metavar="B", help="another version of it")
    parser.add_argument(
        "--requests",
        metavar="PATH",
        help="requests, one JSON body a line; by default the samples that A was recorded with",
    )
    parser.add_argument(
        "--max-difference",
        type=float,
        metavar="X",
        help="exit with status 1 when a value is further apart; ids and masks aside",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Print the differences by method and output.

    Raises:
        TorchRecServeError: an archive cannot be loaded or asked, or they are too far apart.
    """
    from torchrec_archiver import difference  # noqa: PLC0415  it imports torch
    from torchrec_archiver.answer import answering  # noqa: PLC0415

    requests = Path(options.requests) if options.requests else None
    with answering(Path(options.a)) as archive:
        samples = None if requests else difference.samples_of(archive)
        a = _ask(archive, requests, samples)
    with answering(Path(options.b)) as archive:
        b = _ask(archive, requests, samples)
    found, left = difference.differences(a, b)
    if options.json:
        print(json.dumps(_document(options, found, left), indent=2, allow_nan=False))
    else:
        _show(found, left, Console())
    if options.max_difference is not None:
        _check(found, options.max_difference)
    return 0


def _ask(archive: Any, requests: Path | None, samples: Any) -> Any:
    from torchrec_archiver.difference import ask_file, ask_samples  # noqa: PLC0415

    return ask_file(archive, requests) if requests else ask_samples(archive, samples)


def _check(found: "list[Difference]", most: float) -> None:
    measured = [one for one in found if one.largest is not None]
    far = max(measured, key=lambda one: one.largest or 0.0, default=None)
    if far is not None and not (far.largest or 0.0) <= most:
        message = (
            f"max difference: {far.qualname}, output {far.output!r}: values are up to "
            f"{far.largest:.3g} apart, expected at most {most:.3g}"
        )
        raise TorchRecServeError(message)


def _document(
    options: argparse.Namespace, found: "list[Difference]", left: list[str]
) -> dict[str, Any]:
    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    outputs = [
        {
            **{name: finite(value) for name, value in one._asdict().items() if name != "worst"},
            "worst": [
                {name: finite(value) for name, value in row._asdict().items()} for row in one.worst
            ],
        }
        for one in found
    ]
    return {"a": options.a, "b": options.b, "outputs": outputs, "not_compared": left}


def _show(found: "list[Difference]", left: list[str], console: Console) -> None:
    table = Table(title="Differences", title_justify="left")
    for name in ("method", "output"):
        table.add_column(name)
    for name in ("rows", "largest", "mean", "rank correlation", "values that differ"):
        table.add_column(name, justify="right")
    for one in found:
        numbers = (_number(one.largest), _number(one.mean), _number(one.rank_correlation, ".6f"))
        names = (escape(one.qualname), escape(one.output))
        table.add_row(*names, f"{one.rows:,}", *numbers, f"{one.differing:,}")
    console.print(table)
    for one in found:
        for row in one.worst:
            console.print(
                f"{one.qualname} {one.output}: request {row.request}, row {row.row}: "
                f"{row.a:.6g} and {row.b:.6g}",
                highlight=False,
                markup=False,
            )
    for line in left:
        console.print(f"not compared: {line}", highlight=False, markup=False)


def _number(value: float | None, form: str = ".2g") -> str:
    return "" if value is None else format(value, form)
