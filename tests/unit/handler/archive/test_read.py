"""What is read of an archive in any format, and what of one that is not to be trusted."""

import json
import resource
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.archives import hostile
from torchrec_handler.archive.format import INDEX, MANIFEST, SAMPLES
from torchrec_handler.archive.read import Call, read_description, read_index
from torchrec_handler.errors import ArchiveError

AGAIN = "the archive was altered, build or copy it again"
NOTHING = "only archives that torchrec-archiver built describe themselves"


def as_mar(path: Path) -> Path:
    return hostile.write(path / "shop.mar", hostile.index(["t_user"]))


def as_folder(path: Path) -> Path:
    folder = path / "shop"
    with zipfile.ZipFile(as_mar(path)) as members:
        members.extractall(folder)  # noqa: S202  the test's own
    return folder


def as_tar(path: Path) -> Path:
    """The index first, then what a search for it alone does not reach."""
    folder = as_folder(path)
    with tarfile.open(path / "shop.tar.gz", "w:gz") as tar:
        for name in (INDEX, SAMPLES, MANIFEST):
            tar.add(folder / name, f"./shop/{name}" if name == SAMPLES else f"shop/{name}")
    return path / "shop.tar.gz"


@pytest.mark.parametrize("write", [as_mar, as_folder, as_tar])
def test_every_format_says_the_same(write: Callable[[Path], Path], tmp_path: Path) -> None:
    archive = write(tmp_path)
    found = read_description(archive)
    assert read_index(archive) == found.index == hostile.index(["t_user"])
    assert found.model == {"modelName": "shop", "modelVersion": "1.0"}
    assert found.calls == (Call("forward", 1), Call("forward", 4))
    assert found.sizes.keys() == {INDEX, MANIFEST, SAMPLES}
    with zipfile.ZipFile(tmp_path / "shop.mar") as members:
        assert found.sizes == {entry.filename: entry.file_size for entry in members.infolist()}


def test_what_has_an_index_alone_is_described(tmp_path: Path) -> None:
    content = hostile.index([]).dumps().encode()
    found = read_description(hostile.mar(tmp_path / "shop.mar", {INDEX: content}))
    assert (found.model, found.calls) == ({}, ())


def encrypted(path: Path) -> Path:
    archive = as_mar(path)
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    return archive


def damaged(path: Path) -> Path:
    archive = as_mar(path)
    content = bytearray(archive.read_bytes())
    content[42:44] = b"\xff\xff"  # behind the first name
    archive.write_bytes(content)
    return archive


def with_members(**members: bytes) -> Callable[[Path], Path]:
    """A good archive with other members."""
    names = {"index": INDEX, "manifest": MANIFEST, "samples": SAMPLES}

    def write(path: Path) -> Path:
        good = {INDEX: hostile.index([]).dumps().encode()}
        named = {names[name]: content for name, content in members.items()}
        return hostile.mar(path / "shop.mar", {**good, **named})

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: hostile.bomb(path / "shop.mar"),
            f"archive.json: is longer than 67,108,864 bytes, expected less; {AGAIN}",
        ),
        (
            lambda path: hostile.bomb(path / "shop.mar", claimed=100),
            f"archive: PATH holds no archive.json (Bad CRC-32 for file 'archive.json'); {NOTHING}",
        ),
        (
            lambda path: hostile.long_name(path / "shop.tar.gz"),
            f"archive: PATH holds no archive.json (a name of 2147483648 bytes); {NOTHING}",
        ),
        (
            lambda path: hostile.crowd(path / "shop.tar.gz"),
            f"archive: PATH holds more than 10,000 members, expected some nine; {AGAIN}",
        ),
        (
            encrypted,
            f"archive: PATH holds no archive.json (archive.json is encrypted); {NOTHING}",
        ),
        (
            damaged,
            (
                "archive: PATH holds no archive.json (Error -3 while decompressing data: invalid "
                f"block type); {NOTHING}"
            ),
        ),
        (
            with_members(index=b"\xff"),
            (
                "archive: PATH holds no archive.json ('utf-8' codec can't decode byte 0xff in "
                f"position 0: invalid start byte); {NOTHING}"
            ),
        ),
        (
            with_members(manifest=b"{}"),
            f"{MANIFEST}: cannot be read ('model'); build or copy the archive again",
        ),
        (
            with_members(samples=b"\xff" * 8 + b"{}"),
            (
                f"{SAMPLES}: its head cannot be read ('__metadata__'); the archive was altered or "
                "damaged, build or copy it again"
            ),
        ),
    ],
)
def test_what_cannot_be_read_is_one_error(
    write: Callable[[Path], Path], message: str, tmp_path: Path
) -> None:
    archive = write(tmp_path)
    with pytest.raises(ArchiveError) as caught:
        read_description(archive)
    assert str(caught.value) == message.replace("PATH", str(archive))


def test_a_folder_of_many_files_is_read(tmp_path: Path) -> None:
    """TorchServe installed requirements there; of what is no file nothing is read."""
    folder = as_folder(tmp_path)
    (folder / "package").mkdir()
    (folder / "package" / "module.py").touch()
    (folder / "gone").symlink_to("nowhere")
    assert read_description(folder).sizes.keys() == {INDEX, MANIFEST, SAMPLES, "package/module.py"}


MEMORY = 2**29


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    """The whole command line, in 512 MB."""
    archive = hostile.bomb(tmp_path / "shop.mar")
    done = subprocess.run(
        [sys.executable, "-m", "torchrec_archiver", "inspect", archive],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = f"ERROR: archive.json: is longer than 67,108,864 bytes, expected less; {AGAIN}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_a_wrong_value_is_not_said_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchrec_archiver.__main__ import main  # noqa: PLC0415

    document = {**json.loads(hostile.index([]).dumps()), "tables": "\x1b[31m" * 10_000}
    archive = with_members(index=json.dumps(document).encode())(tmp_path)
    assert main(["inspect", str(archive)]) == 1
    said = repr("\x1b[31m" * 10_000)[:200]
    assert capsys.readouterr().err == (
        f"ERROR: archive.json: tables: received {said}…, expected list\n"
    )
