"""What a killed program left goes, unless another process still needs it."""

import os
import subprocess
from pathlib import Path

from torchrec_archiver.locked import hold, locked_folder, make_folder

PREFIX = "torchrec-test-"


def test_a_folder_stays_as_long_as_a_process_holds_it(tmp_path: Path) -> None:
    """As TorchServe does, which goes on when `serve` is killed outright."""
    folder, lock = make_folder(tmp_path, PREFIX)
    own = hold(folder)
    holding = subprocess.Popen(["sleep", "60"], pass_fds=(own,))  # noqa: S607
    os.close(own)
    os.close(lock)  # what a kill does
    with locked_folder(tmp_path, PREFIX):
        assert folder.is_dir()
    holding.kill()
    holding.wait()
    with locked_folder(tmp_path, PREFIX) as other:
        assert list(tmp_path.iterdir()) == [other]


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"{PREFIX}pipe")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
    with locked_folder(tmp_path, PREFIX):
        assert {path.name for path in tmp_path.iterdir()} > {
            f"{PREFIX}pipe",
            f"{PREFIX}link",
            "elsewhere",
        }
    assert len(list(tmp_path.iterdir())) == 3
