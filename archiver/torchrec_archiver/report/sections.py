"""What there is to show of an archive in tables, as text that is safe to print."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchrec_archiver.report.plan import Shard, shards
from torchrec_archiver.report.words import MOST_NAMES, counted, joined, number, plain, seconds, size
from torchrec_handler.archive.format import (
    INDEX,
    DenseDtypes,
    Index,
    InputSignature,
    Report,
    Sizes,
    TableEntry,
)
from torchrec_handler.archive.read import Call, Description

Times = dict[Call, dict[str, float]]
"""A recorded call -> stage -> seconds of one request."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """Of a section."""

    name: str
    is_number: bool = False
    is_digest: bool = False
    """Whether its beginning is enough."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table of text."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    total: tuple[str, ...] = ()
    note: str = ""


def sections(description: Description, most: int, times: Times | None = None) -> Iterator[Section]:
    """Tables of what an archive says, those with something in them.

    Args:
        description: of the archive.
        most: rows of one section.
        times: of the archive's stages, where they were taken.
    """
    index = description.index
    if index.signature.inputs:
        yield _inputs(index.signature.inputs, most)
    if index.tables:
        yield _tables(index.tables, most)
    if index.plan:
        yield _plan(index, index.plan, most)
    if index.kernels != Report():
        yield _kernels(index.kernels, most)
    if index.dense:
        yield _layers(index.dense, most)
    if times:
        yield _times(times)
    yield _members(description, most)


def columns(*names: str) -> tuple[Column, ...]:
    """`#` in front of a name: of numbers; `=`: a digest."""
    return tuple(
        Column(
            name=name.lstrip("#="), is_number=name.startswith("#"), is_digest=name.startswith("=")
        )
        for name in names
    )


def left_out(total: int, most: int, what: str) -> str:
    """What to say under a section that does not show all."""
    return "" if total <= most else f"{most:,} {what} of {total:,}; --json prints all"


def _inputs(inputs: Sequence[InputSignature], most: int) -> Section:
    rows = [row for entry in inputs for row in _features(entry, most)]
    names = ["input", "type", "#place", "feature", "#ids below", "#most ids", "raw values"]
    # The last two are of few models.
    empty = [at for at in (6, 5) if not any(row[at] for row in rows)]
    for at in empty:
        del names[at]
    return Section(
        title="Inputs",
        columns=columns(*names),
        rows=tuple(
            tuple(cell for at, cell in enumerate(row) if at not in empty) for row in rows[:most]
        ),
        note=left_out(sum(max(1, len(entry.features)) for entry in inputs), most, "features"),
    )


def _features(entry: InputSignature, most: int) -> Iterator[tuple[str, ...]]:
    """An input's features in order; what goes for all of them stands beside the first."""
    names = [plain(name) for name in entry.features[: most + 1]]
    kind = f"{entry.type}, 64 bits" if entry.is_wide else entry.type
    if entry.width is not None:
        kind = f"{kind}, width {plain(entry.width)}"
    known = "not known" if entry.num_features is None else f"{plain(entry.num_features)} not named"
    for at, name in enumerate(names or [known]):
        below = _at(entry.ids_below, at, "any")
        longest = _at(entry.longest, at, "any")
        place = str(at) if names else ""
        head = (plain(entry.name), kind) if at == 0 else ("", "")
        yield (*head, place, name, below, longest, _raw(entry, at))


def _raw(entry: InputSignature, at: int) -> str:
    """What is made of a feature's raw values."""
    hashed = entry.hashed[at] if at < len(entry.hashed) else None
    policy = entry.out_of_range[at] if at < len(entry.out_of_range) else None
    default = entry.defaults[at] if at < len(entry.defaults) else None
    said = [
        f"hashed into {hashed.rows:,}, seed {hashed.seed}" if hashed else "",
        f"out of range: {policy}" if policy else "",
        "" if default is None else f"{default:g} if missing",
    ]
    return plain(", ".join(filter(None, said)))


def _at(limits: Sequence[int | None], at: int, free: str) -> str:
    """A feature's limit; of an input without such limits nothing."""
    if at >= len(limits):
        return ""
    limit = limits[at]
    return free if limit is None else f"{limit:,}"


def _tables(entries: Sequence[TableEntry], most: int) -> Section:
    shown = list(entries)
    if len(entries) > most:
        shown = sorted(entries, key=lambda entry: -entry.nbytes)[:most]
    collections = len({entry.name for entry in entries}) < len(entries)
    total = (
        counted(len(entries), "table"),
        *(("",) if collections else ()),
        *(f"{sum(entry.rows for entry in entries):,}", "", ""),
        *(size(sum(entry.nbytes for entry in entries)), "", ""),
    )
    return Section(
        title="Tables",
        columns=columns(
            "table",
            *(("collection",) if collections else ()),
            *("#rows", "#width", "dtype", "#bytes", "#max error", "#mean error"),
        ),
        rows=tuple(
            (
                plain(entry.name),
                *((plain(entry.collection),) if collections else ()),
                *(f"{entry.rows:,}", str(entry.width), entry.dtype, size(entry.nbytes)),
                *(number(entry.max_error), number(entry.mean_error)),
            )
            for entry in shown
        ),
        total=total,
        note=left_out(len(entries), most, "tables, the largest ones,"),
    )


def _plan(index: Index, plan: str, most: int) -> Section:
    found = shards(plan, {entry.key: entry for entry in index.tables})
    title = "Plan, where it was built"
    if not found:  # of another TorchRec, or another planner
        lines = plan.splitlines()
        rows = tuple((plain(line),) for line in lines[:most])
        note = left_out(len(lines), most, "lines")
        return Section(title=title, columns=columns("plan"), rows=rows, note=note)
    totals: Counter[str] = Counter()
    for shard in found:
        totals[shard.device] += shard.nbytes or 0
    by_device = joined([f"{device} {size(total)}" for device, total in totals.items()])
    return Section(
        title=title,
        columns=columns("device", "table", "rows", "columns", "#bytes"),
        rows=tuple(map(_shard, found[:most])),
        total=("", counted(len(found), "shard"), "", "", size(totals.total())),
        note="; ".join(part for part in (by_device, left_out(len(found), most, "shards")) if part),
    )


def _shard(shard: Shard) -> tuple[str, ...]:
    return (
        *(plain(shard.device), plain(shard.key.table)),
        *(_range(*shard.rows), _range(*shard.columns)),
        "?" if shard.nbytes is None else size(shard.nbytes),
    )


def _range(first: int, count: int) -> str:
    return "none" if count == 0 else f"{first:,} to {first + count - 1:,}"


def _kernels(report: Report, most: int) -> Section:
    rows = [
        (
            plain(found.kernel),
            plain(found.path),
            f"{plain(found.type.rpartition('.')[2])} replaced, "
            + (f"in {plain(found.dtype)}" if found.dtype else "bit for bit")
            + (f", with {_sizes(found.sizes)}; else called as it is" if found.sizes else ""),
        )
        for found in report.replaced[:most]
    ]
    rows += [
        (plain(left.kernel), plain(left.path), f"declined: {plain(left.why, 400)}")
        for left in report.declined[: most - len(rows)]
    ]
    return Section(
        title="Kernels, where it was built",
        columns=columns("kernel", "module", "what became of it"),
        rows=tuple(rows),
        note=left_out(len(report.replaced) + len(report.declined), most, "modules"),
    )


def _sizes(sizes: Sequence[Sizes]) -> str:
    """Of batches."""
    said = [
        f"{one.least:,} rows and more"
        if one.most is None
        else counted(one.most, "row")
        if one.least == one.most
        else f"up to {one.most:,} rows"
        if one.least == 1
        else f"{one.least:,} to {one.most:,} rows"
        for one in sizes[:MOST_NAMES]
    ]
    return " or ".join(said)


def _layers(dense: DenseDtypes, most: int) -> Section:
    """In which types layers compute."""
    return Section(
        title="Layers, by dense.dtype: auto",
        columns=columns("parameter", "dtype"),
        rows=tuple((plain(name), dtype) for name, dtype in [*dense.dtypes.items()][:most]),
        note=left_out(len(dense.dtypes), most, "layers"),
    )


def _times(times: Times) -> Section:
    stages = list(next(iter(times.values())))
    return Section(
        title="Time of one request, here",
        columns=columns("method", "#rows", *(f"#{stage}" for stage in stages), "#in all"),
        rows=tuple(
            (
                *(plain(call.qualname), f"{call.rows:,}"),
                *(seconds(of_call[stage]) for stage in stages),
                seconds(sum(of_call.values())),
            )
            for call, of_call in times.items()
        ),
    )


def _members(description: Description, most: int) -> Section:
    """Those that the index lists, then what else is there."""
    digests, sizes = description.index.sha256, description.sizes
    listed = {INDEX, *digests}
    names = sorted(listed) + sorted(sizes.keys() - listed)
    return Section(
        title="Members",
        columns=columns("member", "#bytes", "=sha256"),
        rows=tuple(
            (
                plain(name),
                size(sizes[name]) if name in sizes else "missing",
                plain(digests.get(name, "" if name == INDEX else "not listed")),
            )
            for name in names[:most]
        ),
        note=left_out(len(names), most, "members"),
    )
