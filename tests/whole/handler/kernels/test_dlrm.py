"""What is computed in fewer calls scores as well as what was trained."""

import json
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch

from examples.movielens.auc import auc
from examples.movielens.data import load as load_movielens
from tests.support.kinds import CPU
from torchrec_handler.kernels import products
from torchrec_handler.kernels.dlrm import Dlrm
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.method import EVERY
from torchrec_handler.load.factory import FORWARD
from torchrec_handler.load.loader import load
from torchrec_handler.options import PRECISIONS, DenseDtype, Options


@pytest.mark.parametrize("is_graph", [False, True])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_the_trained_models_auc_stays(  # noqa: PLR0913
    dtype: DenseDtype,
    trained: Path,
    movielens_archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_graph: bool,
) -> None:
    """On the test rows of MovieLens, to 0.0005 of float32, int8 tables included."""
    # By time it would be one or the other.
    timed = (lambda method: method.ranges.append(EVERY[0])) if is_graph else partial(str, "slower")
    monkeypatch.setattr(methods, "_time", timed)
    # All but the first layer, which takes the dense features, and the last one.
    monkeypatch.setattr(products, "PACKED_WEIGHTS", 0)
    monkeypatch.setattr(products, "INT8_WEIGHTS", 1_000)
    for name in ("bfloat16", "int8"):
        monkeypatch.setitem(products.WORK, name, 0)
    with zipfile.ZipFile(movielens_archive) as archive:
        archive.extractall(tmp_path)
    options = Options.model_validate({"dense": {"dtype": dtype}, "self_test": False})
    predictor = load(tmp_path, options, CPU)
    module = predictor.module
    assert (FORWARD in predictor.graphs) == is_graph
    if not is_graph:
        assert isinstance(module.get_submodule("_module").forward, Dlrm) == (dtype != "float16")
    dataset = load_movielens()
    rows = dataset.test()
    scores = module(
        {
            "float_features": torch.from_numpy(rows.dense),
            "id_list_features.lengths": torch.from_numpy(rows.lengths).reshape(-1),
            "id_list_features.values": torch.from_numpy(rows.values),
        }
    )["default"]
    expected = json.loads((trained / "metrics.json").read_text())["auc"]
    assert auc(dataset.test_ratings.click, scores.float().numpy()) == pytest.approx(
        expected, abs=5e-4
    )
