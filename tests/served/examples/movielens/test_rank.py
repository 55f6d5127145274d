"""A question to the real server by real curl."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from examples.movielens.data import Dataset
from examples.movielens.rank import CANDIDATES, main, rank
from torchrec_archiver.server import TorchServe


def address(server: TorchServe) -> str:
    return str(server.inference.base_url).rstrip("/")


def test_five_titles_with_scores_are_printed(
    movielens: TorchServe, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request.json"
    arguments = ["--server", address(movielens), "--request", str(request), "--user", "42"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "The best 5 of 20 movies for user 42" in printed
    rows = re.findall(r"^│ (.+?) +│ +(0\.\d{3}) │", printed, re.MULTILINE)
    assert len(rows) == 5
    assert {title for title, _ in rows} <= set(dataset.catalogue.titles.values())
    scores = [float(score) for _, score in rows]
    assert scores == sorted(scores, reverse=True)


def test_the_printed_command_asks_again(
    movielens: TorchServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "a folder" / "request.json"
    assert main(["--server", address(movielens), "--request", str(request)]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    done = subprocess.run(shlex.split(command), capture_output=True, check=True)
    assert len(json.loads(done.stdout)["default"]) == CANDIDATES


def test_the_scores_are_those_of_the_request(movielens: TorchServe, tmp_path: Path) -> None:
    ranked = rank(address(movielens), 7, tmp_path / "request.json")
    answer = movielens.predict("movielens", (tmp_path / "request.json").read_bytes())
    expected = sorted(answer.json()["default"], reverse=True)
    assert [candidate.score for candidate in ranked] == pytest.approx(expected, abs=1e-6)


def test_a_server_without_the_model_is_one_error_line(
    server: TorchServe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = f"{address(server)}/predictions"
    assert main(["--server", wrong, "--request", str(tmp_path / "request.json")]) == 1
    line = "ERROR the server answered 404: Model not found: predictions\n"
    assert capsys.readouterr() == ("", line)
