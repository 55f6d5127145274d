"""A new version takes the old one's place under load, and no request is lost."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.archives import good
from tests.support.command_line import run
from torchrec_archiver.server import TorchServe
from torchrec_handler.archive.format import TABLES

CLIENTS = 8


def archive(server: TorchServe, folder: Path, version: str) -> Path:
    """The ranking model in the server's model store."""
    built = good.build(folder, model_name="swapped", version=version)
    return Path(shutil.copy(built, server.model_store / f"swapped-{version}.mar"))


@contextmanager
def load(server: TorchServe, statuses: list[int | str]) -> Iterator[None]:
    """Clients who ask without a pause."""
    stop = threading.Event()
    url = f"{str(server.inference.base_url).rstrip(chr(47))}/predictions/swapped"
    content = good.request()

    def ask() -> None:
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    statuses.append(client.post(url, json=content).status_code)
                except httpx.HTTPError as error:
                    statuses.append(repr(error))

    clients = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        stop.set()
        for client in clients:
            client.join()


def versions(server: TorchServe) -> list[str]:
    found = server.management.get("/models/swapped/all").json()
    return [each["modelVersion"] for each in found]


def test_versions_are_swapped_under_load(
    server: TorchServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [tmp_path / name for name in ("1", "2", "broken")]
    for folder in folders:
        folder.mkdir()
    address = ["--management-address", str(server.management.base_url).rstrip("/")]
    first, second = (archive(server, folders[at], f"{at + 1}.0") for at in range(2))
    assert run("swap", first, *address) == 0
    try:
        statuses: list[int | str] = []
        with load(server, statuses):
            assert run("swap", second, *address) == 0
            # A version that does not answer its samples as it did when it was built.
            broken = good.build(
                folders[2], model_name="swapped", version="3.0", archive_format="no-archive"
            )
            tables = broken / TABLES
            tables.write_bytes(bytes(len(tables.read_bytes())))
            stored = shutil.copytree(broken, server.model_store / "swapped-3.0")
            capsys.readouterr()
            assert run("swap", stored, *address, "--timeout", "60") == 1
        assert set(statuses) == {200}
        assert len(statuses) > 100
        assert capsys.readouterr().err.startswith("ERROR: swapped: version 3.0 is not ready (")
        assert versions(server) == ["2.0"]
        assert run("swap", second, *address) == 1
        assert capsys.readouterr().err == (
            "ERROR: swapped: version 2.0 answers already; "
            "build the archive with another --version\n"
        )
    finally:
        server.unregister("swapped")


def test_a_server_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    built = good.build(tmp_path)
    assert run("swap", built, "--management-address", "http://127.0.0.1:9") == 1
    assert capsys.readouterr().err == (
        "ERROR: http://127.0.0.1:9: does not answer ([Errno 111] Connection refused); "
        "--management-address is where TorchServe's management_address is\n"
    )
