"""`torchrec-archiver bench` in short form, on a server that runs."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import run
from torchrec_archiver.server import TorchServe
from torchrec_archiver.serving import PROTOBUF
from torchrec_archiver.serving.archive import open_all
from torchrec_archiver.serving.asking import Target, check_samples
from torchrec_handler.archive.format import SAMPLES
from torchrec_handler.archive.samples import read_samples, save_samples
from torchrec_handler.errors import SelfTestError


def url(server: TorchServe) -> str:
    return str(server.inference.base_url).rstrip("/")


def test_every_size_is_loaded_and_drawn(
    movielens: TorchServe,
    movielens_archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--server", url(movielens), "--seconds", "0.2", "--connections", "1,4"]
    picture = tmp_path / "bench.svg"
    options += ["--rows", "1,100", "--json", "--content-type", PROTOBUF]
    assert run("bench", movielens_archive, *options, "--picture", picture) == 0
    said = json.loads(capsys.readouterr().out)
    loads = said.pop("loads")
    assert said == {
        "model": "movielens",
        "version": "1.0",
        "content_type": PROTOBUF,
        "seconds": 0.2,
    }
    sizes = [(one["rows"], one["connections"]) for one in loads]
    assert sizes == [(1, 1), (1, 4), (100, 1), (100, 4)]
    for one in loads:
        assert one["rows_per_second"] == pytest.approx(one["rows"] * one["requests_per_second"])
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert (one["errors"], one["first_error"]) == (0, "")
    drawn = picture.read_text(encoding="utf-8")
    assert ">movielens 1.0</text>" in drawn
    assert ">100 rows a request</text>" in drawn


def test_requests_of_a_file_are_sent_and_errors_are_told(
    movielens: TorchServe,
    movielens_archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    columns = {
        "float_features": [[0.1, 0.9, 0.2, 0.7, 0.5, -0.2]],
        "id_list_features.lengths": [1, 1, 1, 1, 1, 2, 1],
        "id_list_features.values": [42, 30, 1, 7, 50, 3, 5, 20],
    }
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(columns)}\n\n{json.dumps(columns)}\n")
    options = ["--server", url(movielens), "--seconds", "0.2", "--connections", "2"]
    assert run("bench", movielens_archive, *options, "--requests", file) == 0
    table = [line.split("│")[1:3] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert [[cell.strip() for cell in row] for row in table] == [["1", "2"]]
    file.write_text(json.dumps({**columns, "id_list_features.values": [42, 10**6] + [0] * 6}))
    assert run("bench", movielens_archive, *options, "--requests", file) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"ERROR: samples: {file}, line 1: id_list_features.values[1]: ")
    assert run("bench", movielens_archive, *options, "--rows", "20000") == 1
    assert capsys.readouterr().err == (
        f"ERROR: {url(movielens)}/predictions/movielens: answered a request of 20,000 rows with "
        "413: float_features: received 120000 elements, expected at most 98304 "
        "(limits.rows_per_request x 6 features)\n"
    )
    nowhere = ["--server", "http://127.0.0.1:9"]
    assert run("bench", movielens_archive, *nowhere) == 1
    assert capsys.readouterr().err == (
        "ERROR: http://127.0.0.1:9: cannot be asked: [Errno 111] Connection refused; "
        "is it the address of a server?\n"
    )


def test_outputs_that_are_not_the_recorded_ones_are_no_figures(
    movielens: TorchServe, movielens_archive: Path, tmp_path: Path
) -> None:
    model = open_all([movielens_archive], tmp_path)[0]
    target = Target(model=model, url=url(movielens), path="/predictions/movielens")
    check_samples(target)
    samples = read_samples(model.folder / SAMPLES)
    samples[-1].outputs["default"][0][5] += 1
    save_samples(samples, model.folder / SAMPLES)
    with pytest.raises(SelfTestError) as caught:
        check_samples(target)
    where = f"{url(movielens)}: forward, sample of 64 rows, output 'default'[5]: "
    assert str(caught.value).startswith(where)
