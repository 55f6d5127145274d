"""Factories that raise, exit, hang or take all memory: one error each, and never a success."""

import shutil
from pathlib import Path

import pytest

from tests.support.archives import good
from tests.support.archives.broken import write_again
from tests.support.command_line import run
from tests.support.factories.hostile import HOSTILE, HostilePredictFactory
from torchrec_handler.archive.format import DENSE
from torchrec_handler.errors import ArchiveError, FactoryError


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an archive of the hostile factory."""
    store = tmp_path_factory.mktemp("store")
    return good.build(store, factory=HostilePredictFactory, archive_format="no-archive")


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("raise", "HostilePredictFactory.create_predict_module raised ValueError: not today"),
        ("sys.exit", "predict_factory.pt: its code calls sys.exit, which ends a worker"),
        ("much memory", "HostilePredictFactory.create_predict_module raised RuntimeError: "),
    ],
)
def test_what_a_process_survives_is_one_error(
    deed: str, said: str, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOSTILE, deed)
    with pytest.raises(FactoryError) as caught:
        good.load_folder(archive)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("deed", "seconds", "said"),
    [
        ("os._exit", 100, "its code ended the process that loaded it, with exit status 0\n"),
        (
            "hang",
            1,
            (
                "its code is not done after 1 s, expected a model by then\n"
                "hint: --startup-timeout gives it longer\n"
            ),
        ),
    ],
)
def test_what_no_process_survives_is_one_error_of_verify(  # noqa: PLR0913, PLR0917  fixtures
    deed: str,
    seconds: int,
    said: str,
    archive: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(HOSTILE, deed)
    assert run("verify", archive, "--startup-timeout", str(seconds)) == 1
    assert capsys.readouterr() == ("", f"ERROR: archive: {said}")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "Error while deserializing header: header too small"),
        (b"\xff" * 64, "Error while deserializing header: header too large"),
        (b"\2" + bytes(7) + b"{}" + bytes(64), "Error while deserializing header: "),
    ],
)
def test_damaged_dense_weights_with_a_right_digest_are_one_error(
    content: bytes, why: str, archive: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(archive, tmp_path / "copy"))
    write_again(folder, DENSE, content)
    with pytest.raises(ArchiveError) as caught:
        good.load_folder(folder)
    said = str(caught.value)
    assert said.startswith(f"{DENSE}: cannot be read ({why}")
    assert said.endswith("); the archive was altered or damaged")
