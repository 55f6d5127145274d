"""What `inspect` shows of an archive."""

import importlib.metadata
import json
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from torchrec_archiver.__main__ import main
from torchrec_archiver.commands.inspect import show
from torchrec_handler.archive.format import Index
from torchrec_handler.archive.read import read_index


def test_an_archive_is_shown_as_tables(movielens_archive: Path) -> None:
    printed = StringIO()
    show(read_index(movielens_archive), Console(width=120, file=printed))
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


def test_json_is_the_whole_index(
    movielens_archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(movielens_archive), "--json"]) == 0
    printed = capsys.readouterr().out
    index = read_index(movielens_archive)
    assert Index.loads(printed) == index
    assert json.loads(printed) == json.loads(index.dumps())
