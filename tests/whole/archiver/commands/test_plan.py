"""What `plan` says is what a worker does, and what docs/scale.md says of terabytes."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import build, run
from tests.support.paths import ROOT
from torchrec_archiver.report.plan import shards
from torchrec_archiver.report.words import size
from torchrec_handler.archive.read import read_index


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_a_plan_is_the_one_that_a_worker_makes(
    kind: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"torchrec: {{sharding: {{world_size: 3, type: {kind}}}}}")
    assert build(store, "--config-file", config) == 0
    archive = store / "ranking.mar"
    index = read_index(archive)
    made = shards(index.plan or "", {entry.key: entry for entry in index.tables})
    capsys.readouterr()
    assert run("plan", archive, "--nodes", "3", "--type", kind, "--json") == 0
    parts = json.loads(capsys.readouterr().out)["parts"]
    assert made
    assert sorted(
        (part["collection"], part["table"], part["rank"], part["rows"], part["nbytes"])
        for part in parts
    ) == sorted(
        (*shard.key, int(shard.device.split(":")[1].partition("/")[0]), shard.rows[1], shard.nbytes)
        for shard in made
        if shard.rows[1]
    )


@pytest.mark.parametrize(
    ("tables", "arguments"),
    [
        ("1-terabyte", "--nodes 6 --row-wise user"),
        ("1-terabyte", "--nodes 5 --type row_wise"),
        ("10-terabytes", "--nodes 16 --memory 768G"),
    ],
)
def test_the_page_on_scale_has_the_plans_figures(
    tables: str, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ROOT / "docs" / "plans" / f"{tables}.yaml"
    given = ("--exchange-dtype", "float16", "--json", *arguments.split())
    assert run("plan", "--tables", path, *given) == 0
    document = json.loads(capsys.readouterr().out)
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith(f"| `{arguments}` |"))
    assert [cell.strip() for cell in line.split("|")[2:5]] == [
        size(max(rank["nbytes"] for rank in document["ranks"])),
        f"{document['lookup_seconds'] * 1e3:.1f} ms",
        size(document["network_bytes"]),
    ]
