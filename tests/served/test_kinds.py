"""Every kind of model is asked through a real TorchServe."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.factories.kinds_base import KindFactory, keyed
from tests.support.factories.kinds_own import (
    OwnMappingFactory,
    PartFactory,
    PrunedFactory,
    QuantizedFactory,
    ShardedFactory,
)
from tests.support.factories.kinds_ranking import FEATURES
from tests.support.kinds import (
    KINDS,
    archived,
    batch,
    random_request,
    torchrecs_float16,
)
from torchrec_archiver.server import TorchServe
from torchrec_handler.client import PROTOBUF, encode
from torchrec_handler.message.predictor_pb2 import PredictionResponse

SERVED: dict[str, type[KindFactory]] = {
    **KINDS,
    "pruned": PrunedFactory,
    "quantized-by-the-factory": QuantizedFactory,
    "quantized-in-part": PartFactory,
    "quantized-to-a-packaged-type": OwnMappingFactory,
    "sharded-by-the-factory": ShardedFactory,
}
ROWS = 9
JSON = "application/json"
FLOAT16 = {"dense": {"dtype": "float16"}}


@pytest.mark.parametrize("name", list(SERVED))
def test_a_server_answers_as_the_model_in_process(
    name: str, server: TorchServe, tmp_path: Path
) -> None:
    """Every method of every kind, on rows with empty lists and ids never seen."""
    archive, predictor = archived(SERVED[name], tmp_path, name)
    served = f"kind_{name}"  # an example may have taken the name itself
    answer = server.register(archive, model_name=served)
    assert answer.is_success, answer.text
    try:
        for qualname in predictor.qualnames:
            request = random_request(predictor.signature, ROWS, seed=7)
            answer = server.predict(served, request, headers={"X-TorchRec-Qualname": qualname})
            assert answer.is_success, answer.text
            with torch.inference_mode():
                expected = getattr(predictor.module, qualname)(batch(request))
            received = answer.json()
            assert received.keys() == expected.keys()
            for key, value in expected.items():
                torch.testing.assert_close(torch.tensor(received[key]), value, atol=1e-6, rtol=1e-6)
    finally:
        server.unregister(served)


def test_a_server_gives_torchrecs_float16_in_every_format(
    server: TorchServe, tmp_path: Path
) -> None:
    """As float32, which holds every float16; what rows share is looked up once all the same."""
    kind = KINDS["dlrm"]
    archive, predictor = archived(kind, tmp_path, "float16", options=FLOAT16)
    request = random_request(predictor.signature, ROWS, seed=7)
    dense = request["float_features"]
    lengths, values = request["id_list_features.lengths"], request["id_list_features.values"]
    # The user is the same one in all rows.
    values = [11, 12] * ROWS + values[sum(lengths[:ROWS]) :]
    lengths = [2] * ROWS + lengths[ROWS:]
    request |= {"id_list_features.lengths": lengths, "id_list_features.values": values}
    ids = [part.tolist() for part in torch.split(torch.tensor(values), lengths)]
    instances = [
        {"float_features": dense[row], "movie": ids[ROWS + row], "genre": ids[2 * ROWS + row]}
        for row in range(ROWS)
    ]
    sparse = keyed(batch(request), FEATURES)
    bodies: dict[str, dict[str, Any] | bytes] = {
        "columns": request,
        "rows": {"instances": instances, "shared": {"user": [11, 12]}},
        "open inference": {
            "inputs": [
                {
                    "name": name,
                    "shape": list(torch.tensor(data).shape),
                    "datatype": "FP32" if name == "float_features" else "INT32",
                    "data": data,
                }
                for name, data in request.items()
            ]
        },
        "protobuf": encode(dense, sparse),
    }
    answer = server.register(archive, model_name="float16")
    assert answer.is_success, answer.text
    try:
        answers = {
            name: server.predict(
                "float16", body, headers={"Content-Type": PROTOBUF if name == "protobuf" else JSON}
            )
            for name, body in bodies.items()
        }
    finally:
        server.unregister("float16")
    assert all(answer.is_success for answer in answers.values()), answers
    expected = torchrecs_float16(kind)(batch(request))["default"].float()
    (output,) = answers["open inference"].json()["outputs"]
    assert output["datatype"] == "FP32"
    response = PredictionResponse.FromString(answers["protobuf"].content)
    received = {
        "columns": answers["columns"].json()["default"],
        "rows": answers["rows"].json()["default"],
        "open inference": output["data"],
        "protobuf": list(response.predictions["default"].data),
    }
    for name, scores in received.items():
        assert torch.equal(torch.tensor(scores), expected), name
