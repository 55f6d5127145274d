"""Every kind of model is archived, loaded and asked through a real TorchServe."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.factories.kinds_base import KindFactory, keyed, trained
from tests.factories.kinds_meta import (
    META,
    MetaOwnTypeFactory,
    MetaPrunedFactory,
    MetaQuantizedFactory,
)
from tests.factories.kinds_own import (
    OwnMappingFactory,
    OwnTypeFactory,
    PartFactory,
    PrunedFactory,
    QuantizedFactory,
    ShardedFactory,
)
from tests.factories.kinds_ranking import FEATURES
from tests.kinds import (
    KINDS,
    batch,
    build,
    load_archive,
    random_request,
    signature,
    torchrecs_float16,
)
from tests.torchserve import TorchServe
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.client import PROTOBUF, encode
from torchrec_handler.load.states import Predictor
from torchrec_handler.message.predictor_pb2 import PredictionResponse

QUANTIZED = "torchrec.quant.embedding_modules"
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


def archived(
    kind: type[KindFactory], folder: Path, name: str = "kind", **arguments: Any
) -> tuple[Path, Predictor]:
    """An archive, built with options, and what it loads as in this process."""
    options = arguments.pop("options", {})
    (folder / "config.yaml").write_text(yaml.safe_dump({"torchrec": options}))
    archive = build(kind, folder, name, config_file=folder / "config.yaml", **arguments)
    return archive, load_archive(archive, **options)


def save(module: Any, folder: Path) -> Path:
    """A checkpoint, as a training job saves it."""
    torch.save(module.predict_module.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def assert_answers(
    predictor: Predictor, expected: torch.nn.Module, tolerance: float, seed: int = 0
) -> None:
    """On random rows, which do not all get the same score."""
    inputs = batch(random_request(predictor.signature, ROWS, seed))
    received, wanted = predictor.module(inputs), expected(inputs)
    assert wanted["default"].unique().numel() > ROWS // 2
    for name, value in wanted.items():
        torch.testing.assert_close(received[name], value, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_float32_archive_answers_as_the_trained_model(name: str, tmp_path: Path) -> None:
    options = {"tables": {"dtype": "float32"}}
    _, predictor = archived(KINDS[name], tmp_path, options=options)
    assert_answers(predictor, KINDS[name]().create_predict_module(), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float16", 2e-3), ("int8", 2e-2), ("int4", 0.3), ("int2", 1.5)]
)
@pytest.mark.parametrize("name", [name for name in KINDS if name not in {"widths", "by-position"}])
def test_a_quantized_archive_answers_nearly_so(
    name: str, dtype: str, tolerance: float, tmp_path: Path
) -> None:
    """As near as a value of so few bits can be."""
    _, predictor = archived(KINDS[name], tmp_path, options={"tables": {"dtype": dtype}})
    assert predictor.tables
    assert {entry.dtype for entry in predictor.tables.entries.values()} == {dtype}
    assert_answers(predictor, KINDS[name]().create_predict_module(), tolerance)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_dense_part_in_float16_answers_as_torchrecs_quantize_dense(
    name: str, tmp_path: Path
) -> None:
    """Bit for bit, after a self-test against what the archiver recorded of it."""
    archive, predictor = archived(KINDS[name], tmp_path, options=FLOAT16)
    assert replace(predictor.signature, splits=None) == signature(KINDS[name])
    assert read_samples(archive / "samples.safetensors")
    inputs = batch(random_request(predictor.signature, ROWS))
    received = predictor.module(inputs)["default"]
    assert received.dtype == torch.float16
    assert received.unique().numel() > ROWS // 2
    assert torch.equal(received, torchrecs_float16(KINDS[name])(inputs)["default"])


@pytest.mark.parametrize("kind", META)
def test_a_checkpoint_gives_every_weight(kind: type[KindFactory], tmp_path: Path) -> None:
    """Tables that are on meta, position weights, managed collision's ids, and the dense part."""
    module = trained(kind)
    options = {"tables": {"dtype": "float32"}, "sharding": {"world_size": 2}}
    _, predictor = archived(kind, tmp_path, weights=save(module, tmp_path), options=options)
    assert_answers(predictor, module, 1e-6)


def test_a_checkpoint_gives_a_pruned_table_its_first_rows(tmp_path: Path) -> None:
    module = trained(MetaPrunedFactory)
    options = {"tables": {"dtype": "float32"}}
    _, predictor = archived(
        MetaPrunedFactory, tmp_path, weights=save(module, tmp_path), options=options
    )
    assert predictor.tables
    assert [entry.rows for entry in predictor.tables.entries.values()] == [30, 25]
    assert_answers(predictor, module, 1e-6)


def test_a_checkpoint_fits_a_model_that_its_factory_quantizes(tmp_path: Path) -> None:
    """It does so without rows, and the archive brings them in its data type."""
    module = trained(MetaQuantizedFactory)
    _, predictor = archived(MetaQuantizedFactory, tmp_path, weights=save(module, tmp_path))
    assert predictor.tables
    assert {entry.dtype for entry in predictor.tables.entries.values()} == {"int4"}
    assert_answers(predictor, QuantizedFactory().run_weights_dependent_transformations(module), 0)


def test_a_checkpoint_fits_a_type_that_is_quantized_on_request(tmp_path: Path) -> None:
    """Its tables go where tables go, not among the dense weights."""
    module = trained(MetaOwnTypeFactory)
    mapping = {f"{OwnTypeFactory.__module__}.OwnCollection": f"{QUANTIZED}:EmbeddingBagCollection"}
    options = {"tables": {"dtype": "float32", "quantization_mapping": mapping}}
    archive, predictor = archived(
        MetaOwnTypeFactory, tmp_path, weights=save(module, tmp_path), options=options
    )
    assert (archive / "tables.bin").stat().st_size >= 90 * 8 * 4
    assert (archive / "dense.safetensors").stat().st_size < 90 * 8 * 4
    assert_answers(predictor, module, 1e-6)


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
