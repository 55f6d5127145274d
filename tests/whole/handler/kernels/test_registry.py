"""What is replaced and left out, from an option in model-config.yaml to the answer of a request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.answered import ask
from tests.support.archives import good
from torchrec_archiver.__main__ import main
from torchrec_handler.archive.format import Report
from torchrec_handler.errors import OptionError
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.serve import batch
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.tables import once

REPLACED = [
    ("_module.sparse", "ShardedBags", "direct", None),
    ("_module.weighted", "ShardedBags", "direct", None),
    ("_module.over", "Sequential", "linear", "float32"),
]
UNKNOWN = (
    "torchrec.kernels.off: received 'fuse', "
    "expected 'all' or a list of graph, dlrm, crossnet, linear, direct, once"
)


def build(folder: Path, **kernels: Any) -> Path:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"torchrec": {"kernels": kernels}}))
    return good.build(folder, archive_format="no-archive", config_file=config)


def kinds(report: Report) -> list[tuple[str, str, str, str | None]]:
    return [
        (found.path, found.type.rpartition(".")[2], found.kernel, found.dtype)
        for found in report.replaced
    ]


def replaced(module: torch.nn.Module) -> bool:
    return any("forward" in vars(found) for found in module.modules())


def test_the_report_is_in_the_archive_the_predictor_and_the_description(tmp_path: Path) -> None:
    off = ["graph"]  # which is kept where it is no slower, so at times
    predictor = good.load_folder(build(tmp_path, off=off), kernels={"off": off})
    assert predictor.index is not None
    assert kinds(predictor.report) == REPLACED
    assert predictor.index.kernels == predictor.report
    described = json.loads(json.dumps(Engine("ranking", predictor, Options()).describe()))
    assert [found["path"] for found in described["kernels"]["replaced"]] == [
        path for path, *_ in REPLACED
    ]
    assert described["kernels"]["declined"] == []


def test_with_all_kernels_off_an_archive_answers_as_torchrecs_own_module(tmp_path: Path) -> None:
    """Bit for bit, built and loaded so."""
    predictor = good.load_folder(build(tmp_path, off="all"), kernels={"off": "all"})
    assert predictor.index is not None
    assert predictor.report == predictor.index.kernels == Report()
    assert not replaced(predictor.module)
    assert torch.equal(good.scores(predictor.module), good.expected_scores())


def test_a_worker_decides_anew_what_it_replaces(tmp_path: Path) -> None:
    folder = build(tmp_path)
    predictor = good.load_folder(folder, kernels={"off": ["graph", "direct"], "dtype": "bfloat16"})
    assert [found.kernel for found in predictor.report.replaced] == ["linear"]
    torch.testing.assert_close(
        good.scores(predictor.module), good.expected_scores(), atol=2e-2, rtol=2e-2
    )


def load(folder: Path) -> Predictor:
    return good.load_folder(good.build(folder), kernels={"off": ["fuse"]})


@pytest.mark.parametrize("step", [load, lambda folder: build(folder, off=["fuse"])])
def test_a_kernel_that_nobody_knows_is_refused(step: Callable[[Path], Any], tmp_path: Path) -> None:
    """When an archive is built, and when it is loaded."""
    with pytest.raises(OptionError) as caught:
        step(tmp_path)
    assert str(caught.value) == UNKNOWN


@pytest.mark.parametrize(
    ("off", "count"), [([], 1), (["direct"], 1), (["once"], 0), ("all", 0)], ids=str
)
def test_what_rows_share_is_looked_up_once_unless_that_is_off(
    off: Any, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cost in ("CALL_COST", "RUN_COST", "LIST_COST"):
        monkeypatch.setattr(batch, cost, 0)
    # A graph computes what a user has once by itself.
    without = off if off == "all" else ["graph", *off]
    options = {"kernels": {"off": without}}
    predictor = good.load_folder(good.build(tmp_path, archive_format="no-archive"), **options)
    seen: list[int] = []
    inner = predictor.module.get_submodule("_module")
    inner.register_forward_pre_hook(lambda *_: seen.append(len(once._inputs.get())))
    engine = Engine("ranking", predictor, Options.model_validate(options))
    row = {"float_features": [1.0, 2.0, 3.0], "user": [1], "genres": [2]}
    row |= {"tags": [[3, 1.0]], "clicks": []}
    movies = {"movie": [1, 2]}
    bodies = [{"instances": [row] * 2, "shared": movies}, {"instances": [row | movies] * 2}]
    first, second = ask(
        engine,
        [
            RawRequest(body=json.dumps(body).encode(), content_type="application/json")
            for body in bodies
        ],
    )
    assert first.status == 200, first.body
    given, full = (
        [row["logit"] for row in json.loads(response.body)["predictions"]]
        for response in (first, second)
    )
    assert given == pytest.approx(full, rel=1e-5)
    assert seen == [count]


def test_inspect_shows_what_was_replaced_and_what_was_declined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "torchrec: {sharding: {world_size: 2, per_table: {t_user: row_wise}}, "
        "kernels: {off: [graph]}}"
    )
    archive = good.build(tmp_path, archive_format="no-archive", config_file=config)
    assert main(["inspect", str(archive)]) == 0
    printed = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    at = lines.index("Kernels, where it was built")
    assert lines[at + 2 : at + 5] == [
        "direct _module.weighted ShardedBags replaced, bit for bit",
        "linear _module.over Sequential replaced, in float32",
        "direct _module.sparse declined: has row_wise tables, whose ids go to several places",
    ]
    assert main(["inspect", str(archive), "--json"]) == 0
    (declined,) = json.loads(capsys.readouterr().out)["kernels"]["declined"]
    assert declined == {
        "path": "_module.sparse",
        "kernel": "direct",
        "why": "has row_wise tables, whose ids go to several places",
    }
