"""What newcomers give to `serve` and `bench` in the place of an archive: one line, before Java."""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from torchrec_archiver.__main__ import main
from torchrec_archiver.serving.archive import open_all
from torchrec_archiver.serving.settings import free_ports
from torchrec_handler.archive.format import FORMAT_VERSION, INDEX, MANIFEST, MODEL_CONFIG, PACKAGE
from torchrec_handler.errors import ServeError

MODEL = {"modelName": "shop", "modelVersion": "1.0", "serializedFile": PACKAGE}


def write(path: Path, **members: str) -> Path:
    """An archive of plain torch-model-archiver, and what else it should hold."""
    names = {"index": INDEX, "config": MODEL_CONFIG}
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(MANIFEST, json.dumps({"model": MODEL}))
        file.writestr(PACKAGE, "")
        for name, text in members.items():
            file.writestr(names[name], text)
    return path


@pytest.mark.parametrize("command", ["serve", "bench"])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "nowhere/shop.mar",
            (
                "archive: {}/nowhere/shop.mar does not exist; "
                "give the path that torchrec-archiver build printed"
            ),
        ),
        (
            "store/shop",
            "archive: {}/store/shop does not exist; in {}/store there is old.mar, shop.mar",
        ),
        (
            "store",
            (
                "archive: {}/store is a folder without MAR-INF/MANIFEST.json; "
                "in {}/store there is old.mar, shop.mar"
            ),
        ),
        (
            "text.mar",
            (
                "archive: {}/text.mar is neither a .mar, a .tar.gz nor a folder\n"
                "hint: build it with torchrec-archiver build"
            ),
        ),
        (
            "store/old.mar",
            (
                "archive: {}/store/old.mar: archive.json: received format version 0.9, expected "
                f"{FORMAT_VERSION}\n"
                "hint: build the archive again with this version of torchrec-serve"
            ),
        ),
    ],
    ids=["wrong path", "wrong name", "a model store", "no archive", "old archive"],
)
def test_what_cannot_be_served_is_one_line(  # noqa: PLR0913, PLR0917  fixtures
    command: str,
    path: str,
    message: str,
    tmp_path: Path,
    short_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "store").mkdir()
    write(tmp_path / "store" / "shop.mar")
    write(tmp_path / "store" / "old.mar", index='{"format_version": "0.9"}')
    (tmp_path / "text.mar").write_text("shop")
    ports = [part for option, port in free_ports().items() for part in (option, str(port))]
    options = ["--folder", str(short_folder), *(ports if command == "serve" else [])]
    assert main([command, str(tmp_path / path), *options]) == 1
    assert capsys.readouterr().err == f"ERROR: {message.format(*[tmp_path] * 2)}\n"
    assert not list(short_folder.iterdir())


def test_one_version_is_served_once(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one.mar"), write(tmp_path / "other.mar")
    with pytest.raises(ServeError) as caught:
        open_all([one, other], tmp_path / "scratch")
    assert str(caught.value) == (f"archive: {one} and {other} are both shop 1.0; serve one of them")


def test_an_archive_is_unpacked_and_a_folder_stays_where_it_is(tmp_path: Path) -> None:
    packed = open_all([write(tmp_path / "shop.mar")], tmp_path / "scratch")[0]
    assert (packed.name, packed.version, packed.index) == ("shop", "1.0", None)
    assert (packed.folder / PACKAGE).is_file()
    assert packed.folder.is_relative_to(tmp_path / "scratch")
    assert open_all([packed.folder], tmp_path / "other")[0].folder == packed.folder
    with tarfile.open(tmp_path / "shop.tar.gz", "w:gz") as file:
        file.add(packed.folder, "shop")
    unpacked = open_all([tmp_path / "shop.tar.gz"], tmp_path / "third")[0].folder
    assert (unpacked.name, (unpacked / PACKAGE).is_file()) == ("shop", True)
