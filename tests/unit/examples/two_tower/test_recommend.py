"""The command line of the question for one user."""

import pytest

from examples.two_tower.recommend import main


@pytest.mark.parametrize("user", [0, 944])
def test_an_unknown_user_is_one_error_line(user: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--user", str(user)]) == 1
    line = f"ERROR --user: received {user}, expected a user of MovieLens-100k, 1 to 943\n"
    assert capsys.readouterr() == ("", line)


def test_no_server_is_one_error_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "http://127.0.0.1:9"]) == 1
    line = "ERROR http://127.0.0.1:9/predictions/two_tower: [Errno 111] Connection refused\n"
    assert capsys.readouterr() == ("", line)
