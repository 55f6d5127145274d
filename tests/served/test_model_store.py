"""model_store/config.properties in a real TorchServe that starts in another folder.

With the two settings that change what a handler is given most: decode_input_request, which is on in
TorchServe's own configuration, and a service envelope.
"""

import json
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import pytest

from tests.support.factories.needing import MODULE, NeedingFactory
from tests.support.factories.typed import TypedFactory
from torchrec_archiver import build_archive
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving.settings import CONFIG, read

SETTINGS = {
    "vmargs": read(CONFIG)["vmargs"],
    "decode_input_request": "true",
    "service_envelope": "kserve",
}
COLUMNS = {"float_features": [[1, 2]]}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """A TorchServe of these settings, started in a folder of its own, with the typed model."""
    archive = build_archive(
        model_name="typed",
        version="1.0",
        factory=TypedFactory,
        export_path=tmp_path_factory.mktemp("typed"),
    )
    with TorchServe(tmp_path_factory.mktemp("elsewhere"), SETTINGS) as running:
        answer = running.register(archive)
        assert answer.is_success, answer.text
        yield running


def test_no_address_is_fetched_into_the_store(elsewhere: TorchServe, tmp_path: Path) -> None:
    outside = tmp_path / "outside.mar"
    outside.write_bytes(b"")
    answer = elsewhere.management.post("/models", params={"url": outside.as_uri()})
    assert answer.status_code == 404
    assert answer.json()["message"] == (
        f"Given URL {outside.as_uri()} does not match any allowed URL(s)"
    )
    assert not (elsewhere.model_store / outside.name).exists()


def scores(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    found: list[float] = answer.json()["default"]
    return found


def test_json_of_any_kind_is_answered(elsewhere: TorchServe) -> None:
    assert scores(elsewhere.predict("typed", COLUMNS)) == [3.0]
    assert scores(elsewhere.predict("typed", {"instances": [{"a": 1, "b": 2}] * 2})) == [3.0, 3.0]
    tensor = {"name": "float_features", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    answer = elsewhere.predict("typed", {"id": "7", "inputs": [tensor]})
    assert (answer.json()["id"], answer.json()["outputs"][0]["data"]) == ("7", [3.0])


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/typed/1.0",
        "/v1/models/typed:predict",
        "/v2/models/typed/infer",
        "/invocations?model_name=typed",
        "/models/typed/invoke",
    ],
)
def test_kserve_and_sagemaker_ask_by_paths_of_their_own(elsewhere: TorchServe, path: str) -> None:
    assert scores(elsewhere.inference.post(path, json=COLUMNS)) == [3.0]
    assert elsewhere.inference.post(path, content=b"{").status_code == 400


@pytest.mark.parametrize("name", ["data", "body"])
def test_a_form_of_parts_is_read_by_the_parts_type(elsewhere: TorchServe, name: str) -> None:
    file = ("request.json", json.dumps(COLUMNS).encode(), "application/json")
    assert scores(elsewhere.inference.post("/predictions/typed", files={name: file})) == [3.0]


def test_logging_is_ours(elsewhere: TorchServe) -> None:
    """TorchServe's own writes an access log, and where no file is found there is none at all."""
    assert elsewhere.logs_soon("Requests are read by torchrec_handler.front.torchserve.reader")
    assert (elsewhere.logs / "access_log.log").read_bytes() == b""


def test_sockets_and_archives_lie_in_a_folder_for_its_owner_alone(elsewhere: TorchServe) -> None:
    assert stat.S_IMODE(elsewhere.temp.stat().st_mode) == 0o700
    assert list(elsewhere.temp.glob(".ts.sock.*"))
    assert list(elsewhere.temp.glob("models/*/predict_factory.pt"))


def wheel(folder: Path) -> Path:
    """A package that is installed nowhere."""
    path = folder / f"{MODULE}-1.0-py3-none-any.whl"
    info = f"{MODULE}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{MODULE}.py", "FACTOR = 7\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.parametrize("archive_format", ["zip-store", "no-archive"])
def test_what_requirements_list_is_installed_for_the_model_alone(
    elsewhere: TorchServe,
    archive_format: Literal["zip-store", "no-archive"],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Beside the extracted archive; what is in the model store stays as it was."""
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(f"--no-index\n{wheel(tmp_path)}\n")
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / f"{MODULE}.py").write_text("FACTOR = 7\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "built")
        caplog.set_level("INFO")
        archive = build_archive(
            model_name="needing",
            version="1.0",
            factory=NeedingFactory,
            requirements_file=requirements,
            export_path=tmp_path,
            archive_format=archive_format,
        )
    assert (
        "requirements.txt: TorchServe installs it only where it has install_py_dep_per_model=true"
        in caplog.messages
    )
    before = sorted(path.relative_to(tmp_path) for path in archive.rglob("*"))
    answer = elsewhere.register(archive)
    assert answer.is_success, answer.text + elsewhere.log()[-2000:]
    assert scores(elsewhere.predict("needing", {"float_features": [[3.0]]})) == [21.0]
    elsewhere.unregister("needing")
    stored = elsewhere.model_store / archive.name
    assert sorted(path.relative_to(stored.parent) for path in stored.rglob("*")) == before
