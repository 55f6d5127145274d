"""`torchrec-archiver delta`: a checkpoint as the rows and weights that it changes."""

import argparse
import sys
from pathlib import Path

from torchrec_archiver.command_line import (
    add_deltas,
    add_weights,
    by_name,
    keys_of,
    signer_of,
    whole,
)

HELP = "publish what a newer checkpoint changes of an archive"
EXAMPLES = """\
torchrec-archiver delta --base model_store/shop --weights step_9000 --folder updates/shop
torchrec-archiver delta --base model_store/shop --weights step_9000 --folder updates/shop \\
  --after 41 --sign release.pem
"""
MAX_ROWS = 100_000


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    add_weights(parser, required=True)
    parser.add_argument(
        "--after",
        type=whole,
        metavar="N",
        help="the generation that it follows, 0 for the archive; the newest when not given",
    )
    parser.add_argument(
        "--max-rows",
        type=whole,
        default=MAX_ROWS,
        metavar="ROWS",
        help="of a delta: more become several generations, so that workers stand still no longer "
        "for any of them; 0 for one of any size",
    )
    parser.add_argument(
        "--no-outputs",
        action="store_true",
        help="leave out what the archive's samples give then, which a worker compares with what it "
        "finds",
    )
    add_deltas(parser)


def run(options: argparse.Namespace) -> int:
    """Publish deltas, say what changes, and print their paths.

    Raises:
        TorchRecServeError: see `make_delta`.
    """
    from torchrec_archiver.deltas.base import open_base  # noqa: PLC0415  they import torch
    from torchrec_archiver.deltas.making import make_delta  # noqa: PLC0415
    from torchrec_archiver.deltas.writing import Signer  # noqa: PLC0415
    from torchrec_archiver.model import WeightsOf  # noqa: PLC0415

    keys = keys_of(options)
    with open_base(Path(options.base), keys) as base:
        made = make_delta(
            base,
            WeightsOf(
                source=Path(options.weights),
                renamed=by_name("--weights-map", options.weights_map),
                key=options.weights_key,
                ignored=options.ignore_weights,
            ),
            Path(options.folder),
            after=options.after,
            max_rows=options.max_rows or None,
            keys=keys,
            signer=Signer(*signer_of(options)),
            with_outputs=not options.no_outputs,
            progress=sys.stderr.isatty(),
        )
        for key, entry in base.entries.items():
            if changed := made.rows.get(key):
                share = changed / max(1, entry.rows)
                print(f"{key.table}: {changed:,} of {entry.rows:,} rows ({share:.2%})")
    print(f"dense weights: {len(made.dense)}")
    if not made.paths:
        print("nothing differs, so there is no delta")
    for path in made.paths:
        print(path)
    return 0
