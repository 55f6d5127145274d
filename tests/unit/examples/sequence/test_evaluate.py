"""The hit rate's command line."""

import pytest

from examples.sequence.evaluate import main


def test_no_server_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "http://127.0.0.1:9"]) == 1
    line = "ERROR http://127.0.0.1:9/predictions/sequence: [Errno 111] Connection refused\n"
    assert capsys.readouterr() == ("", line)
