"""All the ways to ask a question wrongly."""

import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from examples.movielens.data import Dataset
from examples.movielens.rank import CANDIDATES, RankError, candidates, curl_command, main, rank


def test_candidates_are_later_and_unrated_movies(dataset: Dataset) -> None:
    train, test = dataset.train_ratings, dataset.test_ratings
    asked = candidates(dataset, 42)
    later = test.movie[test.user == 42][:10]
    assert asked.movie[:10].tolist() == later.tolist()
    assert asked.rating[:10].tolist() == test.rating[test.user == 42][:10].tolist()
    rated = np.concatenate([train.movie[train.user == 42], test.movie[test.user == 42]])
    assert not np.isin(asked.movie[10:], rated).any()
    assert len(set(asked.movie)) == CANDIDATES
    assert set(asked.user) == {42}
    assert set(asked.timestamp) == {test.timestamp[test.user == 42].min()}
    assert (candidates(dataset, 42).movie == asked.movie).all()


def test_a_trailing_slash_of_the_server_is_no_part_of_the_path() -> None:
    assert curl_command("http://127.0.0.1:8080/", Path("request.json")) == [
        "curl",
        "--data",
        "@request.json",
        "-H",
        "Content-Type: application/json",
        "http://127.0.0.1:8080/predictions/movielens",
    ]


@pytest.mark.parametrize("user", [0, 944, -1])
def test_an_unknown_user_is_one_error_line(user: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--user", str(user)]) == 1
    line = f"ERROR --user: received {user}, expected a user of MovieLens-100k, 1 to 943\n"
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("wait", ["0", "1"])
def test_no_server_is_one_error_line(
    wait: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--server", "http://127.0.0.1:9", "--request", str(tmp_path / "request.json")]
    assert main([*arguments, "--wait", wait]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(
        r"ERROR curl: \(7\) Failed to connect to 127\.0\.0\.1 port 9 .*\n", printed.err
    )


def test_an_answer_that_holds_no_scores_is_shown(tmp_path: Path) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with HTTPServer(("127.0.0.1", 0), Page) as other:
        thread = Thread(target=other.handle_request)
        thread.start()
        message = "the server answered 200, not 20 scores: <html>hello</html>"
        with pytest.raises(RankError, match=f"^{re.escape(message)}$"):
            rank(f"http://127.0.0.1:{other.server_port}", 42, tmp_path / "request.json")
        thread.join()


def test_a_request_that_cannot_be_written_is_one_error_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--request", str(tmp_path)]) == 1
    line = f"ERROR --request: {tmp_path} cannot be written: Is a directory\n"
    assert capsys.readouterr() == ("", line)


def test_a_machine_without_curl_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RankError, match=r"^curl is not installed$"):
        rank("http://127.0.0.1:9", 42, tmp_path / "request.json")
