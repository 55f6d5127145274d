"""From a model to a predictor, by the steps that load an archive; the tables are encoded here."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from benchmarks.models import Model
from torchrec_archiver.package import DefaultPackager
from torchrec_handler.load.package import Package, open_package
from torchrec_handler.load.process import unchanged_process
from torchrec_handler.load.states import Predictor
from torchrec_handler.load.steps import lay_out, load_weights, make, make_ready
from torchrec_handler.options import Options
from torchrec_handler.tables.store import TableStore, layout

CPU = torch.device("cpu")


class Loaded(NamedTuple):
    """A predictor, and what it took."""

    predictor: Predictor
    seconds: float
    """From when it had its weights, which are drawn rather than read."""


def pack(model: Model) -> Package:
    """The model's package, opened: classes of its own, as in a server."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "package.pt"
        DefaultPackager.save_predict_factory(model.factory, {}, path, {})
        return open_package(path)


def load(package: Package, options: Options) -> Loaded:
    """A predictor of the package with the weights that its factory brings."""
    with unchanged_process():
        weighted = load_weights(make(package, options, CPU), None)
        began = time.perf_counter()
        laid = lay_out(
            weighted, {}, lambda given: TableStore.encode(layout(given.collections), given.own_rows)
        )
        predictor = make_ready(weighted, laid, None)
        return Loaded(predictor, time.perf_counter() - began)
