"""What happens to a server for minutes: each row of the table in docs/reliability.md, measured.

    python -m tests.soak                 # all of it, 20 minutes
    python -m tests.soak workers tables  # some rows

Prints the table, writes it to build/soak.json, and ends with 1 where a promise was not held.
SOAK_MINUTES is how long the mixed load takes, 5 when not given.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.soak import (
    altered,
    filled,
    fresh,
    fresh_times,
    hostile,
    hung,
    killed,
    mixed,
    overloaded,
    swapped,
)
from tests.soak.row import Row

logger = logging.getLogger(__name__)

STORED = Path("build/soak.json")
MINUTES = float(os.environ.get("SOAK_MINUTES", "5"))

ROWS: Mapping[str, Callable[[Path], Row]] = {
    "workers": killed.workers,
    "frontends": killed.frontends,
    "versions": swapped.versions,
    "hangs": hung.model,
    "overload": overloaded.server,
    "disk": filled.disk,
    "builds": filled.builds,
    "tables": altered.tables,
    "clients": hostile.clients,
    "fresh": fresh.updates,
    "fresh-times": fresh_times.times,
    "mixed": partial(mixed.load, minutes=MINUTES),
}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help=f"of {', '.join(ROWS)}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    found: dict[str, Row] = {}
    for name in parser.parse_args().rows or ROWS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            row = found[name] = ROWS[name](Path(folder))
        said = "held" if row.held else "NOT HELD"
        logger.info("| %s | %s | %s | %s |", row.what, row.promise, row.measured, said)
        logger.info("(%s: %.0f s)", name, time.monotonic() - began)
    STORED.parent.mkdir(exist_ok=True)
    before = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    after = {**before, **{name: asdict(row) for name, row in found.items()}}
    STORED.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")
    return int(not all(row.held for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
