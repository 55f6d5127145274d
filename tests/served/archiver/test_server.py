"""A TorchServe of one's own."""

from pathlib import Path

import psutil
import pytest

from torchrec_archiver.server import TorchServe


def test_a_variable_reaches_every_process_and_nothing_is_left(tmp_path: Path) -> None:
    with TorchServe(tmp_path, environment={"OF_THE_CALLER": "1"}) as server:
        assert server.inference.get("/ping").json() == {"status": "Healthy"}
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
        pytest.raises(RuntimeError, match="TorchServe did not start within 60 s: ") as caught,
        server,
    ):
        pass
    assert "nowhere" in str(caught.value)
    assert {process.pid for process in psutil.Process().children(recursive=True)} <= before
