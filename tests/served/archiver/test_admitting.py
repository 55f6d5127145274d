"""What `serve` and a store without a door let TorchServe see."""

import zipfile
from pathlib import Path

import pytest

from tests.support.archives import good
from tests.support.command_line import run
from tests.support.factories.hostile import HOSTILE, HostilePredictFactory
from tests.support.keys import make_keys
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving.running import running
from torchrec_archiver.serving.settings import free_ports
from torchrec_archiver.signing import sign_archive
from torchrec_handler.archive.trust import TRUSTED_KEYS


def ports() -> list[str]:
    return [part for option, port in free_ports().items() for part in (option, str(port))]


def test_a_file_that_python_imports_runs_only_where_nobody_looks_first(
    server: TorchServe,
    tmp_path: Path,
    short_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TorchServe puts the archive's folder on the worker's PYTHONPATH."""
    ran = tmp_path / "ran"
    archive = good.build(tmp_path, model_name="shadows")
    with zipfile.ZipFile(archive, "a") as members:
        members.writestr("sitecustomize.py", f"open({str(ran)!r}, 'w')")
        members.writestr("safetensors.py", "raise SystemExit")
    store = tmp_path / "store"
    store.mkdir()
    assert run("serve", archive, "--folder", short_folder, *ports()) == 1
    assert run("admit", archive, "--into", store) == 1
    said = (
        f"ERROR: archive: {archive}: safetensors.py, sitecustomize.py: in it, but not listed in "
        "archive.json; remove it, or build or copy the archive again\n"
    )
    assert capsys.readouterr().err == said * 2
    assert not ran.exists()
    assert not list(store.iterdir())
    assert not server.register(archive).is_success
    server.unregister(archive.stem)
    assert ran.exists(), "TorchServe does so no more: docs/trust.md says that it does"


def test_a_signed_archive_is_served_by_workers_that_trust_the_same_keys(
    tmp_path: Path, short_folder: Path
) -> None:
    private, public = make_keys(tmp_path, "ours")
    archive = good.build(tmp_path)
    sign_archive(archive, private)
    with running([archive], ports=free_ports(), folder=short_folder, keys=[public]) as server:
        assert server.asked[0].answer
        processes = server.frontend.processes()
        assert {one.environ().get(TRUSTED_KEYS) for one in processes} == {str(public)}
    assert not list(short_folder.iterdir())


def test_a_factory_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path,
    short_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = good.build(tmp_path, factory=HostilePredictFactory)
    monkeypatch.setenv(HOSTILE, "hang")
    options = ["--folder", str(short_folder), "--startup-timeout", "4", *ports()]
    assert run("serve", archive, *options) == 1
    assert capsys.readouterr().err == (
        "ERROR: ranking 1.0 was not loaded within 4 s, and its worker said no word\n"
        "hint: --startup-timeout gives it longer\n"
    )
    assert not list(short_folder.iterdir())
