"""`torchrec-archiver init`: a factory, settings and a request to start from."""

import argparse
import tempfile
from pathlib import Path

from torchrec_handler.errors import BuildError

HELP = "write a factory, settings and a request to start from"
EXAMPLES = """\
torchrec-archiver init serving --model shop.model:build_model
torchrec-archiver init serving --model shop.model:build_model --weights checkpoint.pt
torchrec-archiver init serving --weights checkpoint.pt    # of TorchRec's DLRM; else it guesses
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("folder", metavar="FOLDER", help="where to write them")
    parser.add_argument(
        "--model",
        metavar="MODULE:NAME",
        help="a class or function without parameters, but for a device, that makes the model",
    )
    parser.add_argument(
        "--weights",
        metavar="CHECKPOINT",
        help="what build takes; without --model, tables and layers are read off its names",
    )
    parser.add_argument("-f", "--force", action="store_true", help="replace files that are there")


def run(options: argparse.Namespace) -> int:
    """Write the files, and print what to do next.

    Raises:
        BuildError: the model cannot be made or asked, or the checkpoint cannot be read.
    """
    from torchrec_archiver.checkpoint.read import read_checkpoint  # noqa: PLC0415  it imports torch
    from torchrec_archiver.draft.ask import ask_model  # noqa: PLC0415
    from torchrec_archiver.draft.files import README, write_files  # noqa: PLC0415
    from torchrec_archiver.draft.find import find_model  # noqa: PLC0415
    from torchrec_archiver.draft.names import draft_checkpoint  # noqa: PLC0415
    from torchrec_handler.load.process import unchanged_process  # noqa: PLC0415

    folder = Path(options.folder)
    weights = Path(options.weights) if options.weights else None
    with unchanged_process(), tempfile.TemporaryDirectory() as scratch:
        # Read beside a model too: what is no checkpoint is better told now.
        held = read_checkpoint(weights, Path(scratch)) if weights else None
        if options.model:
            found = find_model(options.model)
            draft = ask_model(found.model, options.model, found.make, found.import_line)
        elif weights and held:
            draft = draft_checkpoint(held, weights)
        else:
            message = "init: received neither a model nor a checkpoint"
            hint = "give --model MODULE:NAME, --weights CHECKPOINT or both"
            raise BuildError(message, hint=hint)
    paths = write_files(
        draft, folder, weights=weights, imported=bool(options.model), force=options.force
    )
    for guess in [*draft.guesses, *([draft.guessed] if draft.guessed else [])]:
        print(f"look at {guess}")
    print(f"wrote {', '.join(map(str, paths))}; {folder / README} tells how to build and serve")
    return 0
