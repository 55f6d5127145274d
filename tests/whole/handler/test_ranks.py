"""The process group: one rank without a rendezvous, or the ranks that torchrun started."""

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.on_ranks import on_ranks
from tests.support.paths import ROOT
from torchrec_handler.errors import LoadError
from torchrec_handler.ranks import Ranks, meet


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own; the group is once a process."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=own_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def own_environment(**added: str) -> dict[str, str]:
    """This process's environment, in which a fixture may have left its own choice for gloo."""
    kept = {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"}
    return {**kept, "PYTHONPATH": str(ROOT / "handler"), **added}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What a process without torchrun says of its group."""
    done = run(
        "import json, psutil, torch, torch.distributed as dist\n"
        "from torchrec_handler.ranks import init_process_group\n"
        "init_process_group()\n"
        "first = dist.group.WORLD\n"
        "tensor = torch.ones(3)\n"
        "dist.all_reduce(tensor)\n"
        "open = psutil.Process().net_connections('inet')\n"
        "init_process_group()\n"
        "print(json.dumps({\n"
        "    'rank': [dist.get_rank(), dist.get_world_size(), dist.get_backend()],\n"
        "    'reduced': tensor.tolist(),\n"
        "    'addresses': [entry.laddr.ip for entry in open],\n"
        "    'peers': [entry.raddr for entry in open if entry.raddr],\n"
        "    'same': dist.group.WORLD is first,\n"
        "}))\n"
    )
    assert not done.returncode, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_alone_it_has_one_rank_and_works(alone: dict[str, Any]) -> None:
    assert alone["rank"] == [0, 1, "gloo"]
    assert alone["reduced"] == [1, 1, 1]


def test_alone_it_listens_on_the_loopback_interface_only(alone: dict[str, Any]) -> None:
    """No rendezvous is opened; gloo's own listener takes a free port that nobody has to choose."""
    assert set(alone["addresses"]) == {"127.0.0.1"}
    assert not alone["peers"]


def test_it_is_started_once(alone: dict[str, Any]) -> None:
    """A second archive in the same process, or a factory that starts it itself, finds it there."""
    assert alone["same"]


def test_two_workers_beside_each_other_do_not_meet() -> None:
    """Each is rank 0 of 1, and the second needs nothing that the first has taken."""
    code = (
        "import sys, torch.distributed as dist\n"
        "from torchrec_handler.ranks import init_process_group\n"
        "init_process_group()\n"
        "print(dist.get_world_size(), flush=True)\n"
        "sys.stdin.read()\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=own_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "1\n"
    assert all(worker.poll() is None for worker in workers)
    for worker in workers:
        worker.communicate(timeout=60)


def test_the_user_s_choice_of_interface_is_kept() -> None:
    done = run(
        "import os\n"
        "from torchrec_handler.ranks import init_process_group\n"
        "init_process_group()\n"
        "print(os.environ['GLOO_SOCKET_IFNAME'])\n",
        GLOO_SOCKET_IFNAME=next(iter(psutil.net_if_addrs())),
    )
    assert done.stdout == f"{next(iter(psutil.net_if_addrs()))}\n", done.stderr


def test_under_torchrun_the_ranks_find_each_other(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import pathlib, torch, torch.distributed as dist\n"
        "from torchrec_handler.ranks import init_process_group\n"
        "init_process_group()\n"
        "tensor = torch.tensor([dist.get_rank() + 1])\n"
        "dist.all_reduce(tensor)\n"
        "said = f'rank {dist.get_rank()} of {dist.get_world_size()}, sum {tensor.item()}'\n"
        "pathlib.Path(__file__).with_name(f'{dist.get_rank()}.txt').write_text(said)\n"
        "dist.destroy_process_group()\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-addr", "127.0.0.1", "--master-port", str(port), str(script)),
        ],
        env=own_environment(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert not done.returncode, done.stderr
    assert [path.read_text() for path in sorted(tmp_path.glob("*.txt"))] == [
        "rank 0 of 2, sum 3",
        "rank 1 of 2, sum 3",
    ]


def test_an_environment_that_leads_nowhere_is_a_loading_error() -> None:
    """TorchServe ends the worker without an answer on anything but a RuntimeError."""
    done = run(
        "from torchrec_handler.errors import LoadError\n"
        "from torchrec_handler.ranks import init_process_group\n"
        "try:\n"
        "    init_process_group()\n"
        "except LoadError as error:\n"
        "    print(error)\n",
        RANK="0",
        MASTER_ADDR="127.0.0.1",
    )
    assert done.stdout == (
        "process group: torchrun's environment does not lead to one: Error initializing "
        "torch.distributed using env:// rendezvous: environment variable WORLD_SIZE expected, "
        "but not set\n"
    ), done.stderr


def refused(_: Ranks, *, leads: bool) -> str:
    """What a rank is told where all of them lead, or none."""
    with pytest.raises(LoadError) as found:
        meet(leads=leads)
    return str(found.value)


@pytest.mark.parametrize(("leads", "count"), [(True, 2), (False, 0)])
def test_one_rank_leads(*, leads: bool, count: int) -> None:
    said = (
        f"ranks: {count} of 2 have a server, expected one; on further machines run "
        "torchrec-archiver join"
    )
    assert on_ranks(2, partial(refused, leads=leads)) == [said, said]


def disagree(ranks: Ranks) -> str:
    """What a rank is told where the second one has another archive."""
    ranks.agree("archive", "the same", 1)
    with pytest.raises(LoadError) as found:
        ranks.agree("archive", "digest", ranks.own == 1)
    return str(found.value)


def test_ranks_agree_on_what_they_serve() -> None:
    said = (
        "ranks: rank 1 of 3 and rank 0 differ in archive; give all of them the same archive and "
        "the same versions of libraries"
    )
    assert on_ranks(3, disagree) == [said] * 3
