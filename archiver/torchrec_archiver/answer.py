"""An archive answering in this process, without a server.

For whoever wants an answer before there is a server: `predict`, `verify`, `compare`.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import yaml

from torchrec_archiver.locked import locked_folder
from torchrec_archiver.near import check_there
from torchrec_archiver.unpack import unpack
from torchrec_handler.archive.verify import read_manifest
from torchrec_handler.errors import ArchiveError, OptionError
from torchrec_handler.load.loader import load
from torchrec_handler.load.process import become_worker, unchanged_process
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options, read_options
from torchrec_handler.serve.engine import Engine

PREFIX = "torchrec-archive-"


class Answering(NamedTuple):
    """A loaded archive."""

    name: str
    """TorchServe's name of the model."""
    folder: Path
    options: Options
    predictor: Predictor
    engine: Engine


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """The folder of an archive: its own, or a temporary one that a .mar or .tar.gz is unpacked to.

    Raises:
        ArchiveError: there is no archive, or it cannot be unpacked.
    """
    if archive.is_dir():
        yield archive
        return
    check_there(archive)
    with locked_folder(Path(tempfile.gettempdir()), PREFIX) as folder:
        yield unpack(archive, folder)


@contextmanager
def answering(archive: Path, *, self_test: bool | None = None) -> Iterator[Answering]:
    """An archive loaded as a worker loads it, on the GPU where there is one.

    Args:
        archive: a .mar, a .tar.gz or a folder.
        self_test: whether to replay the samples; None for what its model-config.yaml says.

    Raises:
        LoadError: it cannot be loaded.
    """
    with unpacked(archive) as folder:
        manifest = read_manifest(folder)
        options = options_of(folder)
        if self_test is not None:
            options = options.model_copy(update={"self_test": self_test})
        device = _device(options.device)
        name = str(manifest.get("modelName", folder.name))
        # A model may use the process group when it is called, not only when it is loaded.
        with unchanged_process():
            become_worker(options, device)
            predictor = load(folder, options, device)
            yield Answering(name, folder, options, predictor, Engine(name, predictor, options))


def options_of(folder: Path) -> Options:
    """The options under `torchrec:` in an archive's model-config.yaml.

    Raises:
        ArchiveError: it cannot be read.
        OptionError: one is wrong.
    """
    config = read_manifest(folder).get("configFile")
    path = folder / str(config)
    if not config or not path.is_file():
        return Options()
    try:
        return read_options(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, RecursionError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"{path.name}: cannot be read: {' '.join(str(error).split())}"
        raise ArchiveError(message) from error


def _device(wanted: str) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if wanted == "cuda" and not has_cuda:
        message = "torchrec.device: received 'cuda', but this machine has no CUDA device"
        raise OptionError(message)
    return torch.device("cuda" if has_cuda and wanted != "cpu" else "cpu")
