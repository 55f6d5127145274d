"""An archive's facts, tables and pictures as one page that needs nothing else."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from markupsafe import Markup

from torchrec_archiver.report.charts import LAYOUTS, Bar, Range, bars, ranges
from torchrec_archiver.report.facts import facts, title
from torchrec_archiver.report.render import render
from torchrec_archiver.report.sections import Times, sections
from torchrec_archiver.report.words import counted, many, number, plain, seconds, size
from torchrec_handler import __version__
from torchrec_handler.archive.format import TableEntry
from torchrec_handler.archive.read import Description
from torchrec_handler.errors import BuildError

MOST_ROWS = 1000
"""Of a section."""
MOST_BARS = 30
"""Tables in a picture; the rest is one bar."""

Picture = tuple[str, str, Markup | None]
"""What it shows, what to know of it, and the picture where there is one."""


def write_page(
    description: Description, archive: Path, path: Path, times: Times | None = None
) -> None:
    """Write the page.

    Args:
        description: of the archive.
        archive: where it lies.
        path: of the page; what is there is replaced.
        times: of the archive's stages, where they were taken.

    Raises:
        BuildError: it cannot be written there.
    """
    try:
        path.write_text(page(description, archive, times), encoding="utf-8")
    except OSError as error:
        message = f"html: {path} cannot be written ({error.strerror or error})"
        raise BuildError(message) from error


def page(description: Description, archive: Path, times: Times | None = None) -> str:
    """HTML without scripts and without anything from elsewhere, which its own policy forbids too.

    Args:
        description: of the archive.
        archive: where it lies.
        times: of the archive's stages, where they were taken.
    """
    style = render("page.css")
    digest = hashlib.sha256(style.encode()).digest()
    return render(
        "page.html",
        title=title(description),
        archive=plain(archive.name),
        style=style,
        policy=f"default-src 'none'; style-src 'sha256-{base64.b64encode(digest).decode()}'; "
        "base-uri 'none'; form-action 'none'",
        numbers=_numbers(description),
        pictures=_pictures(description.index.tables, times),
        facts=facts(description),
        sections=list(sections(description, MOST_ROWS, times)),
        version=__version__,
    )


def _numbers(description: Description) -> list[tuple[str, str]]:
    index = description.index
    tables = index.tables
    features = sum(entry.num_features or 0 for entry in index.signature.inputs)
    errors = [entry.max_error for entry in tables if entry.max_error is not None]
    return [
        ("archive", size(sum(description.sizes.values()))),
        ("tables", many(len(tables))),
        ("rows", many(sum(entry.rows for entry in tables))),
        ("table types", plain(", ".join(sorted({entry.dtype for entry in tables}))) or "none"),
        ("features", many(features)),
        ("largest table error", number(max(errors, default=None))),
    ]


def _pictures(tables: Sequence[TableEntry], times: Times | None) -> list[Picture]:
    found: list[Picture] = []
    if tables:
        found.append(("Bytes by table", "", _by_table(tables)))
        measured = [entry for entry in tables if entry.max_error is not None]
        note = f"largest and mean difference to the float rows{_not_measured(tables, measured)}"
        found.append(("Quantization error by table", note, _errors(measured)))
    note = "of one request, read to write, on the machine that wrote this page"
    if not times:
        note = "not taken: inspect --html FILE --time loads the model, which runs the archive's "
        note += "code, and replays its samples"
    found.append(("Time by stage", note, _by_stage(times) if times else None))
    return found


def _not_measured(tables: Sequence[TableEntry], measured: Sequence[TableEntry]) -> str:
    left = len(tables) - len(measured)
    return f"; {counted(left, 'table')} without float rows to compare with" if left else ""


def _by_table(tables: Sequence[TableEntry]) -> Markup:
    first, rest = _largest(tables, lambda entry: entry.nbytes)
    lines = [Bar(entry.name, (entry.nbytes,), size(entry.nbytes)) for entry in first]
    if rest:
        total = sum(entry.nbytes for entry in rest)
        lines.append(Bar(f"{len(rest):,} others", (total,), size(total)))
    return _in_layouts(partial(bars, lines, "Bytes by table"))


def _errors(tables: Sequence[TableEntry]) -> Markup | None:
    first, rest = _largest(tables, lambda entry: entry.max_error or 0.0)
    lines = [_range(entry.name, [entry]) for entry in first]
    if rest:
        lines.append(_range(f"{len(rest):,} others", rest))
    if not lines:
        return None
    return _in_layouts(partial(ranges, lines, "Quantization error by table", "mean", "largest"))


def _in_layouts(draw: Callable[..., Markup]) -> Markup:
    """A picture for each width of a screen, of which the style shows one."""
    return Markup("").join(draw(layout=layout) for layout in LAYOUTS)


def _range(label: str, tables: Sequence[TableEntry]) -> Range:
    """Of several tables, by rows and width."""
    high = max(entry.max_error or 0.0 for entry in tables)
    values = sum(entry.rows * entry.width for entry in tables) or 1
    share = [entry.rows * entry.width / values for entry in tables]
    low = sum(part * (entry.mean_error or 0.0) for part, entry in zip(share, tables, strict=True))
    return Range(label, min(low, high), high, number(high))


def _largest(
    tables: Sequence[TableEntry], by: Callable[[TableEntry], float]
) -> tuple[list[TableEntry], list[TableEntry]]:
    """Those that are drawn, and the others: one alone is no rest."""
    ordered = sorted(tables, key=by, reverse=True)
    most = MOST_BARS if len(ordered) > MOST_BARS + 1 else len(ordered)
    return ordered[:most], ordered[most:]


def _by_stage(times: Times) -> Markup:
    lines = [
        Bar(
            f"{call.qualname}, {counted(call.rows, 'row')}",
            tuple(of_call.values()),
            seconds(sum(of_call.values())),
        )
        for call, of_call in times.items()
    ]
    return _in_layouts(partial(bars, lines, "Time by stage", list(next(iter(times.values())))))
