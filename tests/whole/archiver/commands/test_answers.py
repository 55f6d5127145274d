"""`predict`, `verify` and `compare`: archives asked from the command line, without a server."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import good
from tests.support.command_line import run
from torchrec_handler.archive.format import DENSE, FORMAT_VERSION, INDEX, SAMPLES, TABLES
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest, Response


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return good.build(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another version of it, in another format."""
    folder = tmp_path_factory.mktemp("other")
    config = folder / "model-config.yaml"
    config.write_text("torchrec: {tables: {dtype: int4}}\n")
    return good.build(folder, version="1.1", archive_format="tgz", config_file=config)


def answer(archive: Path, folder: Path, **options: Any) -> bytes:
    predictor = good.load_folder(good.unpack(archive, folder), **options)
    engine = Engine("ranking", predictor, Options())
    (response,) = engine.predict([RawRequest(body=json.dumps(good.request()).encode())])
    assert isinstance(response, Response)
    return response.body


# predict


def test_a_request_is_answered_as_the_server_does(
    archive: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(good.request(), indent=2))
    assert run("predict", archive, request) == 0
    assert capfdbinary.readouterr() == (answer(archive, tmp_path / "folder") + b"\n", b"")


def test_lines_and_standard_input_are_answered_up_to_the_first_bad_one(
    coarse: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = tmp_path / "requests.jsonl"
    body = json.dumps(good.request())
    lines.write_text(f"{body}\n\n{body}\n{{}}\n{body}\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(body.encode())))
    assert run("predict", coarse, "-", lines) == 1
    out, error = capfd.readouterr()
    assert out == (answer(coarse, tmp_path, tables={"dtype": "int4"}).decode() + "\n") * 3
    assert error == (f"ERROR: {lines}, line 4: float_features: missing, received nothing\n")


def test_what_is_asked_and_how_is_told_by_options(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = tmp_path / "request"
    request.write_text(json.dumps(good.request()))
    assert run("predict", archive, request, "--qualname", "forwrd") == 1
    assert capfd.readouterr() == (
        "",
        f"ERROR: {request}: qualname: received 'forwrd', expected one of forward\n",
    )
    assert run("predict", archive, request, "--content-type", "text/csv") == 1
    assert capfd.readouterr().err.startswith(f"ERROR: {request}: received content type")


@pytest.mark.parametrize("command", ["predict", "verify", "compare"])
def test_an_archive_that_is_not_there_is_one_line_and_a_hint(
    command: str, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"predict": ["-"], "compare": ["x"]}.get(command, [])
    asked = archive.with_name("rankin.mar")
    if command == "predict":
        (tmp_path / "request").touch()
        more = [str(tmp_path / "request")]
    assert run(command, asked, *more) == 1
    assert capsys.readouterr() == (
        "",
        f"ERROR: archive: {asked} does not exist\nhint: did you mean {archive}?\n",
    )


def test_what_is_no_archive_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.mar").write_text("no archive")
    assert run("verify", tmp_path / "shop.mar") == 1
    assert capsys.readouterr() == (
        "",
        (
            f"ERROR: archive: {tmp_path}/shop.mar is neither a .mar, a .tar.gz nor a folder\n"
            "hint: build it with torchrec-archiver build\n"
        ),
    )


# verify


def test_verify_says_what_was_checked(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", archive) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "format",
        "signature",
        "members",
        "listing",
        "tables",
        "model",
    ]
    assert lines[1] == "signature: not checked, no key is trusted"
    assert lines[3:] == [
        "listing: nothing is missing, and nothing is there that is not listed",
        "tables: 5, of the size that their rows take, all finite",
        "model: loads, and answers its samples as when it was built: 4 of forward",
    ]


def test_verify_without_replay_runs_nothing_and_gives_json(
    coarse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", coarse, "--no-replay", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["members"].keys() == {
        *("MAR-INF/MANIFEST.json", "dense.safetensors", "model-config.yaml"),
        *("predict_factory.pt", "samples.safetensors", "tables.bin"),
    }
    assert all(member["bytes"] and member["sha256"] for member in found.pop("members").values())
    assert found == {
        "archive": str(coarse),
        "format_version": FORMAT_VERSION,
        "signer": None,
        "tables": 5,
        "loaded": False,
        "replayed": {},
    }


def test_verify_says_that_a_plain_archive_tells_nothing_of_itself(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = good.unpack(archive, tmp_path)
    for member in (INDEX, DENSE, TABLES, SAMPLES):
        (folder / member).unlink()
    assert run("verify", folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        "members: not checked, plain torch-model-archiver writes no archive.json",
        "model: loads; there are no samples to replay",
    ]


def test_verify_reads_tables_too(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = good.unpack(archive, tmp_path)
    table = bytearray((folder / TABLES).read_bytes())
    table[5] ^= 1
    (folder / TABLES).write_bytes(table)
    assert run("verify", folder, "--no-replay") == 1
    assert capsys.readouterr().err.startswith(f"ERROR: {TABLES}: its sha256 is ")


# compare


def test_two_versions_are_compared_on_the_first_one_s_samples(
    archive: Path, coarse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compare", archive, coarse, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"], found["not_compared"]) == (str(archive), str(coarse), [])
    assert [one["output"] for one in found["outputs"]] == ["default", "logit"]
    for one in found["outputs"]:
        assert (one["qualname"], one["rows"]) == ("forward", 1 + 4 + 16 + 64)
        assert 0 < one["mean"] < one["largest"]
        assert 0.9 < one["rank_correlation"] < 1
        worst = one["worst"][0]
        assert abs(worst["a"] - worst["b"]) == pytest.approx(one["largest"])


def test_a_largest_difference_fails_the_command(
    archive: Path, coarse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text(f"{json.dumps(good.request())}\n" * 2)
    arguments = ("compare", archive, coarse, "--requests", requests)
    assert run(*arguments, "--max-difference", "1e-6") == 1
    out, error = capsys.readouterr()
    assert f"{2 * good.ROWS}" in out
    assert "forward logit: request 1, row " in out
    assert error.startswith("ERROR: max difference: forward, output 'logit': values are up to ")
    assert run("compare", archive, archive, "--requests", requests, "--max-difference", "0") == 0
