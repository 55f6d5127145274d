"""`torchrec-archiver build`; its options are those of `build_archive`."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from rich.console import Console

from torchrec_archiver.command_line import add_invalid_rows, add_weights, by_name
from torchrec_archiver.report.terminal import show
from torchrec_archiver.store import ArchiveFormat
from torchrec_handler.archive.read import read_description

HELP = "package a factory and its weights as an archive"
EXAMPLES = """\
torchrec-archiver build --model-name shop --version 1.0 --factory shop.factory:Factory \\
  --weights checkpoint.pt --export-path model_store
torchrec-archiver build --model-name shop --version 1.1 --factory shop.factory:Factory \\
  --weights checkpoints/step_9000 --weights-key model --config config.pkl=run/config.pkl \\
  --config-file model-config.yaml --samples requests.jsonl --max-output-error 0.01
"""


def add(parser: argparse.ArgumentParser) -> None:
    """Give a parser this command's options."""
    parser.add_argument("--model-name", required=True, help="TorchServe's name of the model")
    parser.add_argument("--version", required=True, help="TorchServe's version of the model")
    parser.add_argument(
        "--factory", required=True, metavar="MODULE:CLASS", help="the PredictFactory to package"
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        type=_name_and_path,
        metavar="NAME=PATH",
        help="a config of the package, repeatable; a .pkl is packed as an object, others as text",
    )
    add_weights(parser)
    parser.add_argument(
        "--samples",
        metavar="PATH",
        help="requests, one JSON body a line, that a worker replays before it is ready",
    )
    parser.add_argument(
        "--max-output-error",
        type=float,
        metavar="X",
        help="fail when quantizing changes an output of the samples by more",
    )
    add_invalid_rows(parser)
    parser.add_argument(
        "--allow-failing-samples",
        action="store_true",
        help="build even where the model raises on samples",
    )
    parser.add_argument(
        "--extra-files",
        action="extend",
        default=[],
        type=lambda text: [part.strip() for part in text.split(",") if part.strip()],
        metavar="PATH[,PATH]",
        help="files that the factory finds as the package's extra_files",
    )
    parser.add_argument(
        "--packager",
        default="torchrec_archiver.package:DefaultPackager",
        metavar="MODULE:CLASS",
        help="a PredictFactoryPackager subclass with your own externs and mocks",
    )
    parser.add_argument("--export-path", default=".", metavar="FOLDER", help="the model store")
    parser.add_argument("--config-file", metavar="PATH", help="model-config.yaml")
    parser.add_argument("--requirements-file", metavar="PATH", help="the model's requirements.txt")
    parser.add_argument(
        "--archive-format",
        choices=("auto", *get_args(ArchiveFormat)),
        default="auto",
        help="as torch-model-archiver's; auto chooses zip-store or no-archive by size",
    )
    parser.add_argument(
        "-f", "--force", action="store_true", help="replace this version, or what has its name"
    )


def run(options: argparse.Namespace) -> int:
    """Build an archive, show it, and print its path.

    Raises:
        TorchRecServeError: see `build_archive`.
    """
    from torchrec_archiver.build import build_archive  # noqa: PLC0415  it imports torch

    archive = build_archive(
        model_name=options.model_name,
        version=options.version,
        factory=options.factory,
        configs=_paths("--config", options.config),
        weights=options.weights,
        weights_map=by_name("--weights-map", options.weights_map),
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
    show(read_description(archive), Console())
    print(archive)
    return 0


def _paths(option: str, named: Iterable[tuple[str, str]]) -> dict[str, Path]:
    return {name: Path(path) for name, path in by_name(option, named).items()}


def _name_and_path(text: str) -> tuple[str, str]:
    name, separator, path = text.partition("=")
    if not separator or not name or not path:
        message = f"received {text!r}, expected NAME=PATH"
        raise argparse.ArgumentTypeError(message)
    return name, path
