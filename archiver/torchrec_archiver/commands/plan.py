"""`torchrec-archiver plan`: what TorchRec's planner makes of tables and a number of ranks."""

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from torchrec_archiver.command_line import above_zero
from torchrec_archiver.commands.serve import number
from torchrec_archiver.near import check_there, near_name
from torchrec_archiver.report.sections import Section, columns, left_out
from torchrec_archiver.report.terminal import MOST_ROWS, show_sections
from torchrec_archiver.report.words import counted, joined, plain, seconds, size
from torchrec_handler.archive.read import read_index
from torchrec_handler.errors import TorchRecServeError

if TYPE_CHECKING:
    from torchrec_archiver.planning import Layout, Part, Rank, Request
    from torchrec_archiver.sizes import Sizes

HELP = "lay tables over ranks: bytes, time, what fits"
EXAMPLES = """\
torchrec-archiver plan model_store/shop.mar --nodes 4 --memory 64G
torchrec-archiver plan model_store/shop.mar --nodes 2 --ranks-per-node 2 --row-wise t_user --json
torchrec-archiver plan --tables tables.yaml --nodes 40 --memory 256Gi --exchange-dtype float16
"""

SHARDING_TYPES = ("table_wise", "row_wise")
EXCHANGE_DTYPES = ("float32", "float16", "bfloat16")
UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
"""As Kubernetes writes them."""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument(
        "archive",
        nargs="?",
        metavar="ARCHIVE",
        help="a .mar, .tar.gz or folder, of which the index alone is read",
    )
    parser.add_argument(
        "--tables",
        metavar="FILE",
        help="in the place of an archive, a YAML or JSON list of tables: name, rows, width; "
        "dtype, features, pooling_factor and count where they are not int8, 1, "
        "--ids-per-feature and 1",
    )
    parser.add_argument("--nodes", type=number, default=1, metavar="N", help="machines; 1")
    parser.add_argument(
        "--ranks-per-node", type=number, default=1, metavar="N", help="processes on each; 1"
    )
    parser.add_argument(
        "--memory",
        type=_bytes,
        metavar="BYTES",
        help="what a node has for tables, such as 64G or 64Gi; where they do not fit, the exit "
        "status is 1 and the hint says what would help",
    )
    parser.add_argument(
        "--type",
        choices=SHARDING_TYPES,
        default=SHARDING_TYPES[0],
        help="of every table that --row-wise does not name",
    )
    parser.add_argument(
        "--row-wise",
        action="append",
        default=[],
        metavar="TABLE",
        help="a table whose rows are spread over all ranks, repeatable",
    )
    parser.add_argument(
        "--exchange-dtype",
        choices=EXCHANGE_DTYPES,
        default=EXCHANGE_DTYPES[0],
        help="of pooled rows between ranks",
    )
    parser.add_argument("--rows", type=number, default=1000, metavar="N", help="of a request; 1000")
    parser.add_argument(
        "--ids-per-feature",
        type=above_zero,
        default=1.0,
        metavar="X",
        help="of a row, in the mean; 1",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        ArchiveError: see `read_index`.
        OptionError, FactoryError: see `lay_out`.
        TorchRecServeError: the file of tables is none, there is no table, or the tables do not fit.
    """
    from torchrec_archiver import fitting, planning  # noqa: PLC0415  they import torch

    tables = _tables(options)
    layout = planning.Layout(
        nodes=options.nodes,
        ranks_per_node=options.ranks_per_node,
        type=options.type,
        per_table=dict.fromkeys(options.row_wise, "row_wise"),
    )
    if layout.ranks > planning.MOST_RANKS:
        message = f"plan: received {layout.ranks:,} ranks, expected at most {planning.MOST_RANKS:,}"
        raise TorchRecServeError(message)
    request = planning.Request(rows=options.rows, exchange_dtype=options.exchange_dtype)
    memory = options.memory and max(1, options.memory // options.ranks_per_node)
    parts = planning.lay_out(tables, layout)
    ranks = planning.by_rank(parts, layout, request, memory)
    lacking = None if memory is None else fitting.missing(ranks, parts, memory)
    helping = list(fitting.would_help(tables, layout, memory or 0)) if lacking else []
    if options.json:
        document = _document(parts, ranks, layout, request, memory)
        document |= {"fits": None if memory is None else not lacking, "would_help": helping}
        print(json.dumps(document, indent=2))
    else:
        show_sections(_sections(parts, ranks, request, memory), Console())
    if lacking:
        hint = f"what would help: {'; or '.join(helping)}" if helping else None
        raise TorchRecServeError(lacking, hint=hint)
    return 0


def _tables(options: argparse.Namespace) -> "list[Sizes]":
    from torchrec_archiver.sizes import of_file, of_index  # noqa: PLC0415  it imports pydantic

    if (options.archive is None) == (options.tables is None):
        message = "plan: expected an ARCHIVE or --tables FILE, and not both"
        raise TorchRecServeError(message)
    if options.tables is not None:
        where, tables = options.tables, of_file(Path(options.tables), options.ids_per_feature)
    else:
        archive = Path(options.archive)
        check_there(archive)
        where = options.archive
        tables = of_index(read_index(archive).tables, options.ids_per_feature)
    if not tables:
        message = f"plan: {where} has no tables that ranks could share"
        raise TorchRecServeError(message)
    known = [table.key.table for table in tables]
    for name in options.row_wise:
        if name not in known:
            message = f"--row-wise: received {name!r}, which is no table of {where}"
            raise TorchRecServeError(message, hint=near_name(name, known, "tables"))
    return tables


def _document(
    parts: "Sequence[Part]",
    ranks: "Sequence[Rank]",
    layout: "Layout",
    request: "Request",
    memory: int | None,
) -> dict[str, Any]:
    return {
        **asdict(layout),
        "memory_of_a_rank": memory,
        "request": asdict(request),
        "ranks": [asdict(rank) for rank in ranks],
        "parts": [
            {
                **part.table.key._asdict(),
                "dtype": part.table.dtype,
                "rank": part.rank,
                "rows": part.rows,
                "nbytes": part.nbytes,
            }
            for part in parts
        ],
        **_sums(ranks),
    }


def _sums(ranks: "Sequence[Rank]") -> dict[str, Any]:
    from torchrec_archiver.planning import imbalance  # noqa: PLC0415  as in `run`

    return {
        "nbytes": sum(rank.nbytes for rank in ranks),
        "lookup_seconds": max(rank.lookup_seconds for rank in ranks),
        "network_bytes": sum(rank.received + rank.answered for rank in ranks),
        "imbalance": {
            "nbytes": imbalance([rank.nbytes for rank in ranks]),
            "lookup_seconds": imbalance([rank.lookup_seconds for rank in ranks]),
        },
    }


def _sections(
    parts: "Sequence[Part]", ranks: "Sequence[Rank]", request: "Request", memory: int | None
) -> Iterator[Section]:
    sums = _sums(ranks)
    uneven, more = sums["imbalance"], left_out(len(ranks), MOST_ROWS, "ranks")
    yield Section(
        title=f"Ranks, and a request of {counted(request.rows, 'row')}",
        columns=columns(
            *("#rank", "#node", "#tables", "#bytes", "#of its memory", "#lookups"),
            *("#ids to it", f"#{request.exchange_dtype} from it"),
        ),
        rows=tuple(
            (
                *(str(rank.rank), str(rank.node), f"{rank.tables:,}", size(rank.nbytes)),
                "" if memory is None else f"{rank.nbytes / memory:.0%}",
                *(seconds(rank.lookup_seconds), size(rank.received), size(rank.answered)),
            )
            for rank in ranks[:MOST_ROWS]
        ),
        total=("", "", "", size(sums["nbytes"]), "", "", "", ""),
        note=(
            f"ranks look up at once: {seconds(sums['lookup_seconds'])}; "
            f"{size(sums['network_bytes'])} over the network; the fullest rank has "
            f"{uneven['nbytes']:.2f} times the mean bytes, the slowest "
            f"{uneven['lookup_seconds']:.2f} times the mean time" + (f"; {more}" if more else "")
        ),
    )
    yield _assigned(parts)


def _assigned(parts: "Sequence[Part]") -> Section:
    by_table: dict[Sizes, list[Part]] = {}
    for part in parts:
        by_table.setdefault(part.table, []).append(part)
    shown = sorted(by_table.items(), key=lambda one: -sum(part.nbytes for part in one[1]))
    return Section(
        title="Tables, the largest first",
        columns=columns("table", "#rows", "#width", "dtype", "#bytes", "#a rank", "ranks"),
        rows=tuple(
            (
                plain(table.key.table),
                *(f"{table.rows:,}", str(table.width), table.dtype),
                size(sum(part.nbytes for part in own)),
                size(max(part.nbytes for part in own)),
                _said([part.rank for part in own]),
            )
            for table, own in shown[:MOST_ROWS]
        ),
        note=left_out(len(shown), MOST_ROWS, "tables"),
    )


def _said(ranks: list[int]) -> str:
    """As `0 to 39`, of those that follow each other."""
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]} to {ranks[-1]}"
    return joined(ranks)


def _bytes(text: str) -> int:
    """A size, above 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    given = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?)([kMGT]|[KMGT]i|)B?", text)
    count = int(float(given[1]) * UNITS[given[2]]) if given else 0
    if not count:
        message = f"received {text!r}, expected bytes, such as 64G or 64Gi"
        raise argparse.ArgumentTypeError(message)
    return count
