"""The measure's command line."""

import re

import pytest

from examples.two_tower.evaluate import main


def test_no_server_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "http://127.0.0.1:9"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"ERROR http://127\.0\.0\.1:9/predictions/two_tower: .+\n", printed.err)
