"""`torchrec-archiver inspect`: shows what an archive says of itself."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from torchrec_handler.archive.format import Index, Report, Signature, TableEntry
from torchrec_handler.archive.read import read_index

HELP = "show what an archive says of itself"
EXAMPLES = """\
torchrec-archiver inspect model_store/shop.mar
torchrec-archiver inspect model_store/shop.mar --json | jq .signature
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Print an archive's index.

    Raises:
        ArchiveError: see `read_index`.
    """
    index = read_index(Path(options.archive))
    if options.json:
        print(index.dumps())
    else:
        show(index, Console())
    return 0


def show(index: Index, console: Console) -> None:
    """Print the index as tables."""
    console.print(_inputs(index.signature))
    if index.tables:
        console.print(_tables(index.tables))
    if index.kernels != Report():
        console.print(_kernels(index.kernels))
    outputs = ", ".join(f"{name} {shape}" for name, shape in index.signature.outputs.items())
    methods = ", ".join(
        name if need_preproc else f"{name} (keyword arguments)"
        for name, need_preproc in index.signature.methods.items()
    )
    facts = {
        "methods": methods,
        "outputs": f"{index.signature.result_metadata}: {outputs or 'not observed'}",
        "batched": _batched(index.signature),
        "output change": _change(index),
        "extra files": ", ".join(index.extra_files) or "none",
        "built with": ", ".join(f"{name} {version}" for name, version in index.versions.items()),
        "format": index.format_version,
    }
    for name, value in facts.items():
        console.print(f"{name}: {value}", highlight=False, markup=False)


def _inputs(signature: Signature) -> Table:
    table = Table(title="Inputs", title_justify="left")
    for column in ("input", "type", "features", "ids below"):
        table.add_column(column)
    for entry in signature.inputs:
        shape = "" if entry.width is None else f" x {entry.width}"
        count = "?" if entry.num_features is None else str(entry.num_features)
        names = list(entry.features) or [f"{count}{shape}"]
        limits = ["any" if rows is None else f"{rows:,}" for rows in entry.ids_below]
        table.add_row(entry.name, entry.type, "\n".join(names), "\n".join(limits))
    return table


def _tables(entries: tuple[TableEntry, ...]) -> Table:
    table = Table(title="Tables", title_justify="left", show_footer=True)
    total = sum(entry.nbytes for entry in entries)
    table.add_column("table", footer=f"{len(entries)} tables")
    for name, footer in (
        ("rows", f"{sum(entry.rows for entry in entries):,}"),
        ("width", ""),
        ("dtype", ""),
        ("bytes", f"{total:,}"),
        ("max error", ""),
        ("mean error", ""),
    ):
        table.add_column(name, footer=footer, justify="right")
    for entry in entries:
        table.add_row(
            entry.name,
            f"{entry.rows:,}",
            str(entry.width),
            entry.dtype,
            f"{entry.nbytes:,}",
            _number(entry.max_error),
            _number(entry.mean_error),
        )
    return table


def _kernels(report: Report) -> Table:
    """What the build's machine replaced, and what it declined and why."""
    table = Table(title="Kernels, where it was built", title_justify="left")
    for column in ("kernel", "module", "what became of it"):
        table.add_column(column)
    for found in report.replaced:
        exactness = f"in {found.dtype}" if found.dtype else "bit for bit"
        kind = found.type.rpartition(".")[2]
        table.add_row(found.kernel, escape(found.path), f"{escape(kind)} replaced, {exactness}")
    for left in report.declined:
        table.add_row(left.kernel, escape(left.path), escape(f"declined: {left.why}"))
    return table


def _batched(signature: Signature) -> str:
    """How each method's requests share a forward call."""
    if signature.splits is None:
        return "seen at load"
    inputs = {entry.name: entry.features for entry in signature.inputs}
    said = []
    for qualname, batched in signature.methods.items():
        outputs = signature.splits.get(qualname)
        if not batched or outputs is None:
            said.append(f"{qualname} one request a call")
            continue
        # Where several counts fit, they cut alike, and rows come first.
        counts = {name: [part.counts[0] for part in parts] for name, parts in outputs.items()}
        by_ids = [
            f"{name} by ids of {count.input}"
            + "".join(f" {inputs[count.input][at]}" for at in count.features if inputs[count.input])
            for name, found in counts.items()
            for count in found
            if count.input is not None
        ]
        said.append(f"{qualname} by rows" + "".join(f", {one}" for one in by_ids))
    return "; ".join(said)


def _change(index: Index) -> str:
    if not index.output_change:
        return "not measured"
    return ", ".join(
        f"{name} not finite" if change is None else f"{name} at most {_number(change)}"
        for name, change in index.output_change.items()
    )


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2g}"
