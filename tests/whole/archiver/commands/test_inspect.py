"""What `inspect` shows of an archive."""

import importlib.metadata
import json
import re
from io import StringIO
from pathlib import Path

import pytest
import torch.distributed as dist
from rich.console import Console

from tests.support.archives import good
from torchrec_archiver.__main__ import main
from torchrec_archiver.report.terminal import show
from torchrec_handler.archive.format import Index
from torchrec_handler.archive.read import read_description, read_index


def test_an_archive_is_shown_as_tables(movielens_archive: Path) -> None:
    printed = StringIO()
    show(read_description(movielens_archive), Console(width=120, file=printed))
    text = printed.getvalue()
    for part in (
        "id_list_features",
        "genres",
        "1,683",
        "t_movie_id",
        "int8",
        "7 tables",
        "methods: forward",
        "outputs: dict_of_tensor: default [1]",
        "batched: forward by rows",
        "output change: forward at most 0.0",
        "extra files: movies.json",
        f"torchrec {importlib.metadata.version('torchrec')}",
        "format: 1.1",
    ):
        assert part in text, text


def times(printed: str) -> list[list[str]]:
    """The rows of the table of times, without units."""
    lines = printed.splitlines()
    at = lines.index("Time of one request, here")
    return [re.findall(r"[\w,.]+", re.sub(" [mµ]s", "", line)) for line in lines[at + 1 : at + 6]]


def test_samples_are_timed_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = good.build(tmp_path, archive_format="tgz")
    capsys.readouterr()
    assert main(["inspect", str(archive), "--time"]) == 0
    head, *rows = times(capsys.readouterr().out)
    assert head == [
        *("method", "rows", "read", "check", "batch", "predict", "split", "write", "in", "all"),
    ]
    assert [row[:2] for row in rows] == [["forward", rows] for rows in ("1", "4", "16", "64")]
    assert all(float(taken.replace(",", "")) > 0 for row in rows for taken in (row[2], row[5]))
    assert not dist.is_initialized()


def test_a_page_with_times_is_written(
    movielens_archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert main(["inspect", str(movielens_archive), "--time", "--html", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text(encoding="utf-8")
    assert "<title>movielens 1.0</title>" in text
    # In each of two layouts.
    assert len(re.findall(r"<title>forward, \d+ rows?: ", text)) == 2 * 4


def test_json_is_the_whole_index(
    movielens_archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(movielens_archive), "--json"]) == 0
    printed = capsys.readouterr().out
    index = read_index(movielens_archive)
    assert Index.loads(printed) == index
    assert json.loads(printed) == json.loads(index.dumps())
