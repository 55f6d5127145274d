"""Deltas that commands make reach a server, which is waited for."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from tests.support.archives import good
from tests.support.command_line import run
from tests.support.factories.ranking import MetaRankingPredictFactory, seeded
from torchrec_archiver.server import TorchServe
from torchrec_handler.archive.delta import list_deltas

BIAS = "over.2.bias"


@pytest.fixture
def followed(server: TorchServe, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The archive, and the folder that its worker follows."""
    folder, store, config = tmp_path / "updates", tmp_path / "store", tmp_path / "config.yaml"
    folder.mkdir()
    store.mkdir()
    updates = f"{{folder: {folder}, place: {tmp_path}}}"
    config.write_text(f"torchrec:\n  updates: {updates}\n", encoding="utf-8")
    archive = good.build(
        store,
        model_name="followed",
        factory=MetaRankingPredictFactory,
        configs={"name.txt": "ranking"},
        weights=seeded().state_dict(),
        config_file=config,
    )
    answer = server.register(archive)
    assert answer.is_success, answer.text
    yield archive, folder
    server.unregister("followed")
    (server.model_store / archive.name).unlink()


def asked(server: TorchServe) -> httpx.Response:
    return server.predict("followed", good.request()).raise_for_status()


def test_a_checkpoint_is_served_and_taken_back(
    server: TorchServe,
    followed: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive, folder = followed
    weights, elsewhere = dict(seeded().state_dict()), tmp_path / "elsewhere"
    elsewhere.mkdir()
    weights[BIAS] = weights[BIAS] + 1
    torch.save(weights, tmp_path / "weights.pt")
    given = ("--base", archive, "--folder", elsewhere)
    address = str(server.management.base_url)
    applied = ("--base", archive, "--folder", folder, "--wait", "20")
    before = asked(server)
    assert run("delta", "--weights", tmp_path / "weights.pt", *given) == 0
    assert run("rollback", "--to", "0", *given) == 0
    first, back = list_deltas(elsewhere)
    capsys.readouterr()
    assert run("apply", first, *applied, "--management-address", address) == 0
    said, path = capsys.readouterr().out.splitlines()
    assert said.startswith("served after ")
    assert path == str(folder / "00000001.delta")
    after = asked(server)
    assert (before.headers["X-TorchRec-Sequence"], after.headers["X-TorchRec-Sequence"]) == (
        "0",
        "1",
    )
    old, new = (torch.tensor(answer.json()["logit"]) for answer in (before, after))
    torch.testing.assert_close(new, old + 1, rtol=0, atol=1e-4)
    assert run("apply", back, *applied, "--management-address", address) == 0
    assert asked(server).json() == before.json()
    # Generation 3 is kept back.
    assert run("rollback", "--to", "1", *given) == 0
    assert run("rollback", "--to", "2", *given) == 0
    fourth = list_deltas(elsewhere)[3]
    applied = ("--base", archive, "--folder", folder, "--wait", "0.3")
    capsys.readouterr()
    assert run("apply", fourth, *applied, "--management-address", address) == 1
    assert capsys.readouterr().err == (
        "ERROR: 00000004.delta: after 0.3 s generation 2 is served; "
        f"generation 3 is missing from {folder}\n"
    )
    assert run("apply", fourth, *applied, "--management-address", "http://127.0.0.1:9") == 1
    assert capsys.readouterr().err == (
        "ERROR: http://127.0.0.1:9: does not answer ([Errno 111] Connection refused)\n"
    )
