"""A TorchServe of one's own, with the repository's settings and without."""

from pathlib import Path

import psutil
import pytest

from torchrec_archiver.server import TorchServe


def test_it_starts_without_the_repositorys_settings_and_leaves_nothing(tmp_path: Path) -> None:
    """As where only the package is installed; a variable reaches every process."""
    missing = tmp_path / "nothing"
    with TorchServe(
        tmp_path, config=missing, log_config=missing, environment={"OF_THE_CALLER": "1"}
    ) as server:
        assert server.inference.get("/ping").json() == {"status": "Healthy"}
        assert "job_queue_size" not in (tmp_path / "config.properties").read_text()
        processes, temp = server.processes(), server.temp
        assert any("java" in process.name() for process in processes)
        assert all(process.environ()["OF_THE_CALLER"] == "1" for process in processes)
        assert temp.is_dir()
    assert not any(process.is_running() for process in processes)
    assert server.processes() == []
    assert not temp.exists()


def test_one_that_cannot_start_says_what_it_printed(tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    server = TorchServe(tmp_path, {"inference_address": "nowhere"})
    with (
        pytest.raises(RuntimeError, match="TorchServe did not start within 60 s:\n") as caught,
        server,
    ):
        pass
    assert "nowhere" in str(caught.value)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
