"""What `inspect` says of what is no archive."""

from pathlib import Path

import pytest

from torchrec_archiver.__main__ import main
from torchrec_handler.archive.read import read_index
from torchrec_handler.errors import ArchiveError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "archive: PATH does not exist"),
        (
            b"no archive",
            (
                "archive: PATH holds no archive.json (File is not a zip file); only archives that "
                "torchrec-archiver built describe themselves"
            ),
        ),
    ],
)
def test_what_is_no_archive_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.mar"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArchiveError) as caught:
        read_index(path)
    assert str(caught.value) == message.replace("PATH", str(path))


def test_the_command_line_ends_with_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "model.mar")]) == 1
    assert capsys.readouterr().err == (
        f"ERROR: archive: {tmp_path}/model.mar does not exist\nhint: {tmp_path} is empty\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ("inspect",),
        ("sign", "--private-key", "release.pem"),
        ("swap",),
    ],
)
def test_an_archive_that_is_not_there_is_told_with_the_one_that_is(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.mar").touch()
    assert main([*command, str(tmp_path / "modle.mar")]) == 1
    assert capsys.readouterr().err == (
        f"ERROR: archive: {tmp_path}/modle.mar does not exist\n"
        f"hint: did you mean {tmp_path}/model.mar?\n"
    )
