"""A library call leaves its caller's process as it was; a server's worker is changed for good."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.archives import good
from tests.support.paths import ROOT

BEGIN = """
import json, logging, os, signal, sys, threading
from pathlib import Path
import torch
import torch.distributed as dist
from torchrec.distributed.global_settings import get_propogate_device
from torchrec_archiver import build_archive
from torchrec_handler.errors import TorchRecServeError
from torchrec_handler.load.loader import load
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options

folder = Path(sys.argv[1])
factory = "tests.support.factories.ranking:RankingPredictFactory"
cpu = torch.device("cpu")

def state():
    loggers = ("torchrec.distributed.planner", "MethodLogger-NullHandler", "")
    return {
        "environment": dict(os.environ),
        "path": list(sys.path),
        "threads": torch.get_num_threads(),
        "device flag": get_propogate_device(),
        "levels": [logging.getLogger(name).level for name in loggers],
        "group": dist.is_initialized(),
        "random": torch.get_rng_state().tolist(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "gradients": torch.is_grad_enabled(),
        "folder": os.getcwd(),
    }

def build(**arguments):
    given = {"model_name": "ranking", "version": "1.0", "factory": factory}
    return build_archive(**given, export_path=folder, **arguments)

torch.set_num_threads(2)
before = state()
"""

END = """
print(json.dumps([before, state()]))
"""


def states(folder: Path, code: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A process' state before and after some code."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + code + END, str(folder)],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"},
            "PYTHONPATH": os.pathsep.join((str(ROOT / "handler"), str(ROOT / "archiver"), "")),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


FAILING = """
try:
    {}
except TorchRecServeError:
    pass
else:
    raise SystemExit("it did not fail")
"""


BUILDS = [
    "build(archive_format='no-archive')",
    FAILING.format("build(weights=folder / 'nowhere.pt')"),
    FAILING.format("build(weights={'odd': torch.ones(1)}, force=True)"),
]
LOADS = [
    "load(folder / 'there', Options(threads=1), cpu)",
    FAILING.format("load(folder, Options(threads=1), cpu)"),
    FAILING.format(
        "load(folder / 'there', Options.model_validate({'tables': {'dtype': 'int4'}}), cpu)"
    ),
]


@pytest.mark.parametrize("calls", [BUILDS, LOADS], ids=["build_archive", "load"])
def test_a_library_call_leaves_its_process_as_it_was(calls: list[str], tmp_path: Path) -> None:
    """Whether it succeeds, or fails early or late."""
    good.build(tmp_path, archive_format="no-archive").rename(tmp_path / "there")
    before, after = states(tmp_path, "\n".join(calls))
    assert before["threads"] == 2
    assert after == before


@pytest.mark.parametrize("sharding", ["table_wise", "row_wise"])
def test_a_loaded_model_answers_after_the_process_is_as_it_was(
    sharding: str, tmp_path: Path
) -> None:
    """Also where nothing was asked while it was loaded, and TorchRec completes it only then."""
    good.build(tmp_path, archive_format="no-archive").rename(tmp_path / "there")
    options = {"self_test": False, "sharding": {"type": sharding}}
    code = (
        "from tests.support.archives import good\n"
        f"predictor = load(folder / 'there', Options.model_validate({options}), cpu)\n"
        "scores = good.scores(predictor.module)\n"
        "before = {'received': scores.tolist(), 'expected': good.expected_scores().tolist()}\n"
    )
    answers, _ = states(tmp_path, code)
    assert answers["received"] == pytest.approx(answers["expected"], rel=1e-4)


def test_a_worker_is_changed_for_good(tmp_path: Path) -> None:
    good.build(tmp_path, archive_format="no-archive").rename(tmp_path / "there")
    _, after = states(
        tmp_path,
        "become_worker(Options(threads=1), cpu)\nload(folder / 'there', Options(threads=1), cpu)",
    )
    assert (after["threads"], after["group"], after["device flag"]) == (1, True, True)
    assert after["environment"]["GLOO_SOCKET_IFNAME"] == "lo"


def test_memory_of_a_worker_s_call_is_kept_for_the_next() -> None:
    """Each page that malloc gave back would be a fault at the next call."""
    code = """
import resource
import torch
from torchrec_handler.load.process import become_worker
from torchrec_handler.options import Options
become_worker(Options(), torch.device("cpu"))
for _ in range(20):  # malloc settles after some calls
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**22) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    # 64 MiB are 16,384 pages.
    assert int(done.stdout) < 500
