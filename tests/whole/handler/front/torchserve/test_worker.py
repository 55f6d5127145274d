"""The handler as TorchServe's own loader makes it, in process."""

import json
from pathlib import Path
from typing import Any

import pytest
from ts.context import RequestProcessor
from ts.model_loader import TsModelLoader
from ts.torch_handler.request_envelope.base import BaseEnvelope

from tests.support.factories.typed import TypedFactory
from torchrec_archiver import build_archive

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("envelope", [None, "body", "json", "kserve", "kservev2"])
def test_a_service_envelope_changes_nothing(
    envelope: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe's own would join a batch's requests, or drop all but the first, errors too."""
    monkeypatch.setattr(BaseEnvelope, "handle", BaseEnvelope.handle)
    archive = build_archive(
        model_name="typed",
        version="1.0",
        factory=TypedFactory,
        export_path=tmp_path,
        archive_format="no-archive",
    )
    service = TsModelLoader().load(
        "typed", str(archive), "torchrec_handler.handler", envelope=envelope
    )
    tensor = {"name": "float_features", "shape": [1, 2], "datatype": "FP32", "data": [5, 6]}
    bodies: list[Any] = [
        {"instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]},
        {"instances": [{"a": 1}]},
        {"id": "7", "inputs": [tensor]},
        {"float_features": [[7, 8]]},
    ]
    context = service.context
    context.request_processor = [RequestProcessor(JSON) for _ in bodies]
    received = service._entry_point(
        [{"body": json.dumps(body).encode()} for body in bodies], context
    )
    rows, bad, tensors, columns = map(json.loads, received)
    assert rows["default"] == [3.0, 7.0]
    assert bad["message"] == "instances[0].b: missing, expected in every row"
    assert (tensors["id"], tensors["outputs"][0]["data"]) == ("7", [11.0])
    assert columns["default"] == [15.0]
    statuses = [context.get_response_status(at)[0] for at in range(len(bodies))]
    assert statuses == [200, 400, 200, 200]
