"""`torchrec-archiver verify`: checks all of an archive, and says what was checked."""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from torchrec_archiver.command_line import add_invalid_rows, add_keys, add_startup_timeout, keys_of

HELP = "check every digest of an archive and replay its samples"
EXAMPLES = """\
torchrec-archiver verify model_store/shop.mar
torchrec-archiver verify model_store/shop.mar --no-replay     # reads it, runs none of its code
torchrec-archiver verify incoming/shop.mar --trusted-keys release.pub
torchrec-archiver verify model_store/shop.mar --json | jq .members
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    parser.add_argument(
        "--no-replay",
        dest="replay",
        action="store_false",
        help="check files alone; the model is not loaded, nothing in the archive runs",
    )
    add_startup_timeout(parser)
    add_keys(parser)
    add_invalid_rows(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(options: argparse.Namespace) -> int:
    """Print what was checked.

    Raises:
        LoadError: what is wrong with the archive.
    """
    from torchrec_archiver.admitting import check  # noqa: PLC0415  it imports torch
    from torchrec_archiver.answer import unpacked  # noqa: PLC0415
    from torchrec_archiver.replaying import replay  # noqa: PLC0415
    from torchrec_handler.archive.format import INDEX, REQUIREMENTS, SAMPLES  # noqa: PLC0415
    from torchrec_handler.archive.samples import read_samples  # noqa: PLC0415

    archive, keys = Path(options.archive), keys_of(options)
    with unpacked(archive) as folder:
        alone = not archive.is_dir() or bool(keys)
        found = check(folder, keys, allowed=options.allow_invalid_rows, alone=alone)
        index = found.index
        samples = read_samples(folder / SAMPLES) if index and index.samples else []
        if options.replay:
            replay(folder, options.startup_timeout)
        members: dict[str, dict[str, Any]] = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in (index.sha256 if index else {}).items()
        }
    checked: dict[str, Any] = {
        "archive": options.archive,
        "format_version": index.format_version if index else None,
        "signer": str(found.signer) if found.signer else None,
        "members": members,
        "tables": len(index.tables) if index else None,
        "loaded": options.replay,
        "replayed": dict(Counter(sample.qualname for sample in samples)) if options.replay else {},
    }
    if options.json:
        print(json.dumps(checked, indent=2))
        return 0
    if index:
        size = sum(member["bytes"] for member in members.values())
        print(f"format: {index.format_version}")
        print(f"signature: {found.signer or 'not checked, no key is trusted'}")
        print(f"members: {len(members)}, {size:,} bytes, each as its sha256 in {INDEX} says")
        # TorchServe installs its requirements beside them.
        more = ", and nothing is there that is not listed"
        print(f"listing: nothing is missing{more if alone or REQUIREMENTS not in members else ''}")
        finite = "" if options.allow_invalid_rows else ", all finite"
        print(f"tables: {len(index.tables)}, of the size that their rows take{finite}")
    else:
        print(f"members: not checked, plain torch-model-archiver writes no {INDEX}")
    print(f"model: {_loaded(checked)}")
    return 0


def _loaded(checked: dict[str, Any]) -> str:
    if not checked["loaded"]:
        return "not loaded, as --no-replay says"
    replayed = ", ".join(f"{count} of {name}" for name, count in checked["replayed"].items())
    if not replayed:
        return "loads; there are no samples to replay"
    return f"loads, and answers its samples as when it was built: {replayed}"
