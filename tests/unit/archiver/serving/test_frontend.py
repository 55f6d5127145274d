"""Where a server's folder is made."""

import os
import tempfile
from pathlib import Path

import pytest

from torchrec_archiver.serving.session import LONGEST_TEMP, PREFIX, temporary
from torchrec_handler.errors import ServeError


def test_it_is_this_user_s_alone_and_goes_with_its_block(short_folder: Path) -> None:
    with temporary(short_folder) as made:
        assert made.parent == short_folder
        assert made.stat().st_mode & 0o777 == 0o700
        (made / "file").touch()
    assert not list(short_folder.iterdir())


def test_one_too_long_for_a_socket_is_left_out_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * LONGEST_TEMP)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with temporary() as made:
        assert len(os.fsencode(made)) <= LONGEST_TEMP
    with pytest.raises(ServeError) as caught, temporary(long):
        pass
    size = len(os.fsencode(long)) + len("/torchrec-serve-12345678")
    assert str(caught.value).endswith(
        f" is {size} bytes long, and workers' sockets can lie in one of at most 92; "
        "give a shorter one"
    )
    assert not list(long.iterdir())
    with pytest.raises(ServeError) as caught, temporary(tmp_path / "nowhere"):
        pass
    assert str(caught.value) == (
        f"--folder: {tmp_path}/nowhere cannot hold a folder: No such file or directory; "
        "give another one"
    )


def test_what_a_killed_server_left_goes_and_another_s_folder_stays(short_folder: Path) -> None:
    (short_folder / f"{PREFIX}stale" / "archives").mkdir(parents=True)
    with temporary(short_folder) as first, temporary(short_folder) as second:
        assert sorted(short_folder.iterdir()) == sorted([first, second])
