"""Commands of `torchrec-archiver`, run in process."""

import logging
from pathlib import Path

from torchrec_archiver import __main__ as command_line

FACTORY = "tests.support.factories.ranking:RankingPredictFactory"


def run(*arguments: str | Path) -> int:
    """The exit status; logging, which a command sets up for its own process, is as it was."""
    root = logging.getLogger()
    handlers, filters, level = list(root.handlers), list(root.filters), root.level
    try:
        return command_line.main([str(argument) for argument in arguments])
    except SystemExit as end:  # argparse's way
        return int(end.code or 0)
    finally:
        root.handlers[:], root.filters[:] = handlers, filters
        root.setLevel(level)


def build(store: Path, *arguments: str | Path) -> int:
    """The exit status of building the ranking model."""
    return run(
        *("build", "--model-name", "ranking", "--version", "1.0"),
        *("--factory", FACTORY, "--export-path", store, *arguments),
    )
