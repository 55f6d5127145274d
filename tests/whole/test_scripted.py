"""Modules that their factories script, trace or compile, archived, loaded and asked."""

from pathlib import Path

import pytest
import torch

from tests.support.answered import ask
from tests.support.factories.kinds_base import trained
from tests.support.factories.kinds_scripted import (
    MetaScriptedFactory,
    QuantizedScriptedFactory,
    ScriptedFactory,
    TorchRecsDlrmFactory,
    TracedFactory,
)
from tests.support.kinds import batch, build, load_archive
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.predict import predict
from torchrec_handler.serve.request import RawRequest

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


IDS = {"id_list_features.lengths": [2, 0, 1, 1], "id_list_features.values": [3, 4, 7, 0]}


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (TracedFactory, 0),
        (ScriptedFactory, 0),
        (MetaScriptedFactory, 0),
        (QuantizedScriptedFactory, 0.02),
    ],
)
def test_tables_that_a_factory_traces_are_dense_weights(
    kind: type[TracedFactory],
    tolerance: float,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No collection is left to quantize, and what was traced is given rows as it is traced."""
    is_meta = kind.tables_device == "meta"
    model = trained(kind) if is_meta else kind().create_predict_module()
    weights = model.predict_module.state_dict() if is_meta else None
    predictor = load_archive(build(kind, tmp_path, weights=weights))
    assert (
        "tables: the factory's transformations trace or script bags.embedding_bags.t_user.weight, "
        "bags.embedding_bags.t_movie.weight, so they stay as they are, among the dense weights, "
        "neither quantized nor shared by workers"
    ) in [record.getMessage() for record in caplog.records]
    received = predict(predictor.module, "forward", {**batch(IDS)}, predictor.result_metadata)
    expected = model(batch(IDS))["default"].tolist()
    assert received["default"][0].tolist() == pytest.approx(expected, abs=tolerance or 1e-6)
    engine = Engine("model", predictor, Options())
    body = b'{"id_list_features.lengths": [1, 0], "id_list_features.values": [8]}'
    (answer,) = ask(engine, [RawRequest(body=body, content_type="application/json")])
    assert answer.status == 400
    assert b"received id 8 of feature 'user', expected 0 to 7" in answer.body
