"""Modules that their factories script, trace or compile, archived, loaded and asked."""

from pathlib import Path

import pytest
import torch

from tests.factories.kinds_scripted import TorchRecsDlrmFactory
from tests.kinds import batch, build, load_archive
from torchrec_handler.serve.predict import predict

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit"),
    pytest.mark.filterwarnings("ignore:.*TorchScript"),
]


def test_torchrecs_own_dlrm_factory_is_served(tmp_path: Path) -> None:
    """Its script was warmed up with gradients, and does not bear inference mode."""
    predictor = load_archive(build(TorchRecsDlrmFactory, tmp_path))
    for rows in (1, 2, 5):
        inputs = batch(
            {
                "float_features": [[0.1 * row, 1.0, -0.5] for row in range(rows)],
                "id_list_features.lengths": [1] * 2 * rows,
                "id_list_features.values": [*range(rows), *range(rows)],
            }
        )
        received = predict(predictor.module, "forward", {**inputs}, predictor.result_metadata)
        with torch.no_grad():
            expected = TorchRecsDlrmFactory().create_predict_module(1, "cpu")(inputs)
        assert received["default"][0].tolist() == expected["default"].tolist()
