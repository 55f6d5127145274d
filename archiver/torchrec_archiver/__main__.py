"""The command line `torchrec-archiver`; option names follow torch-model-archiver's."""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, get_args

from rich.console import Console

from torchrec_archiver.build import build_archive
from torchrec_archiver.inspect import as_json, read_index, show
from torchrec_archiver.store import ArchiveFormat
from torchrec_handler.errors import BuildError, TorchRecServeError

INTERRUPTED = 130
"""The exit status of a program that Ctrl-C ended, as shells give it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 with one ERROR line on standard error.
    """
    options = _parser().parse_args(arguments)
    # torch has made its own root handler by now.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    # torch-model-archiver logs what it also raises.
    logging.getLogger().addFilter(lambda record: record.module != "model_packaging_utils")
    logging.getLogger("torchrec_archiver").setLevel(logging.INFO)
    # torch warns here of a call that torchrec makes, with nothing in it for the user.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    try:
        return int(options.run(options))
    except TorchRecServeError as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("ERROR: interrupted; nothing was written", file=sys.stderr)
        return INTERRUPTED


def _build(options: argparse.Namespace) -> int:
    archive = build_archive(
        model_name=options.model_name,
        version=options.version,
        factory=options.factory,
        configs=_paths("--config", options.config),
        weights=options.weights,
        weights_map=_by_name("--weights-map", options.weights_map),
        weights_key=options.weights_key,
        ignore_weights=options.ignore_weights,
        samples=options.samples,
        max_output_error=options.max_output_error,
        allow_invalid_rows=options.allow_invalid_rows,
        allow_failing_samples=options.allow_failing_samples,
        extra_files=_paths(
            "--extra-files", [(Path(path).name, path) for path in options.extra_files]
        ),
        packager=options.packager,
        export_path=options.export_path,
        config_file=options.config_file,
        requirements_file=options.requirements_file,
        archive_format=options.archive_format,
        force=options.force,
        progress=sys.stderr.isatty(),
    )
    show(read_index(archive), Console())
    print(archive)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    index = read_index(Path(options.archive))
    if options.json:
        print(as_json(index))
    else:
        show(index, Console())
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End as every other wrong input does."""
        self.exit(1, f"ERROR: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="torchrec-archiver",
        description="Build TorchServe model archives from TorchRec predict factories.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    build = commands.add_parser(
        "build", help="package a factory and its weights as an archive", allow_abbrev=False
    )
    build.add_argument("--model-name", required=True, help="TorchServe's name of the model")
    build.add_argument("--version", required=True, help="TorchServe's version of the model")
    build.add_argument(
        "--factory", required=True, metavar="MODULE:CLASS", help="the PredictFactory to package"
    )
    build.add_argument(
        "--config",
        action="append",
        default=[],
        type=_name_and_path,
        metavar="NAME=PATH",
        help="a config of the package, repeatable; a .pkl is packed as an object, others as text",
    )
    build.add_argument(
        "--weights",
        metavar="PATH",
        help="a torch.save file, safetensors, an index of either, a folder with a file of each "
        "rank, or a torch.distributed.checkpoint",
    )
    build.add_argument(
        "--weights-map",
        action="append",
        default=[],
        type=_prefixes,
        metavar="OLD=NEW",
        help="a prefix of the checkpoint's names to replace, repeatable",
    )
    build.add_argument(
        "--weights-key",
        metavar="KEY",
        help="the part of the checkpoint that is the model's, such as ema or app.model",
    )
    build.add_argument(
        "--ignore-weights",
        action="append",
        default=[],
        metavar="PATTERN",
        help="names of the checkpoint to leave out, such as '*._metrics.*', repeatable",
    )
    build.add_argument(
        "--samples",
        metavar="PATH",
        help="requests, one JSON body a line, that a worker replays before it is ready",
    )
    build.add_argument(
        "--max-output-error",
        type=float,
        metavar="X",
        help="fail when quantizing changes an output of the samples by more",
    )
    build.add_argument(
        "--allow-invalid-rows",
        action="append",
        default=[],
        metavar="TABLE",
        help="take a table with NaN, infinity, or what is too large for its type, repeatable",
    )
    build.add_argument(
        "--allow-failing-samples",
        action="store_true",
        help="build even where the model raises on samples",
    )
    build.add_argument(
        "--extra-files",
        action="extend",
        default=[],
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        metavar="PATH[,PATH]",
        help="files that the factory finds as the package's extra_files",
    )
    build.add_argument(
        "--packager",
        default="torchrec_archiver.package:DefaultPackager",
        metavar="MODULE:CLASS",
        help="a PredictFactoryPackager subclass with your own externs and mocks",
    )
    build.add_argument("--export-path", default=".", metavar="FOLDER", help="the model store")
    build.add_argument("--config-file", metavar="PATH", help="model-config.yaml")
    build.add_argument("--requirements-file", metavar="PATH", help="the model's requirements.txt")
    build.add_argument(
        "--archive-format",
        choices=("auto", *get_args(ArchiveFormat)),
        default="auto",
        help="as torch-model-archiver's; auto chooses zip-store or no-archive by size",
    )
    build.add_argument(
        "-f", "--force", action="store_true", help="replace this version, or what has its name"
    )
    build.set_defaults(run=_build)
    inspect = commands.add_parser(
        "inspect", help="show what an archive says of itself", allow_abbrev=False
    )
    inspect.add_argument("archive", metavar="ARCHIVE", help="a .mar, .tar.gz or folder")
    inspect.add_argument("--json", action="store_true", help="print one JSON document")
    inspect.set_defaults(run=_inspect)
    return parser


def _paths(option: str, named: Iterable[tuple[str, str]]) -> dict[str, Path]:
    return {name: Path(path) for name, path in _by_name(option, named).items()}


def _by_name(option: str, named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> value; a name given twice would silently lose one."""
    values: dict[str, str] = {}
    for name, value in named:
        if name in values:
            message = f"{option}: {name!r} is given twice: {values[name]} and {value}"
            raise BuildError(message)
        values[name] = value
    return values


def _prefixes(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not separator:
        message = f"received {text!r}, expected OLD=NEW"
        raise argparse.ArgumentTypeError(message)
    return old, new


def _name_and_path(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        message = f"received {text!r}, expected NAME=PATH"
        raise argparse.ArgumentTypeError(message)
    return name, path


if __name__ == "__main__":
    sys.exit(main())
