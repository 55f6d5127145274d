"""`init`: what it writes builds and answers its own request, as it is."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support import drafted
from tests.support.command_line import run
from tests.support.paths import ROOT

DRAFTED = "tests.support.drafted"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; modules that a test imports from it are gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    monkeypatch.delitem(sys.modules, "factory", raising=False)
    return tmp_path


def answers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *more: str
) -> dict[str, list[object]]:
    """What the archive of a drafted folder gives for the drafted request, by output."""
    monkeypatch.chdir(folder)
    arguments = ("--model-name", "m", "--version", "1", "--factory", "factory:Factory", *more)
    assert run("build", *arguments, "--config-file", "model-config.yaml") == 0
    sys.modules.pop("factory", None)
    capfd.readouterr()
    assert run("predict", "m.mar", "request.json") == 0
    answer = json.loads(capfd.readouterr().out)
    del answer["predictions"]
    return dict(answer)


@pytest.mark.parametrize(
    ("model", "inputs", "outputs"),
    [
        ("dlrm", {"float_features": 5, "id_list_features": 2}, {"default": ()}),
        ("TwoTower", {"id_list_features": 3}, {"output_0": (4,), "output_1": (4,)}),
        ("Untyped", {"float_features": 7, "id_list_features": 2}, {"default": ()}),
        (
            "Keywords",
            {"id_list_features": 2, "id_score_list_features": 1, "float_features": 3},
            {"score": (), "items": (8,)},
        ),
    ],
)
def test_a_model_is_served_as_init_drew_it_up(  # noqa: PLR0913, PLR0917  fixtures
    model: str,
    inputs: dict[str, int],
    outputs: dict[str, tuple[int, ...]],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = here / "serving"
    assert run("init", folder, "--model", f"{DRAFTED}:{model}") == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("README.md", "factory.py", "model-config.yaml", "request.json")
    ]
    given = answers(folder, monkeypatch, capfd)
    assert {name: torch.tensor(given[name]).shape for name in given} == {
        name: torch.Size([2, *shape]) for name, shape in outputs.items()
    }
    assert run("inspect", "m.mar", "--json") == 0
    signature = json.loads(capfd.readouterr().out)["signature"]
    assert {one["name"]: one["num_features"] for one in signature["inputs"]} == inputs


@pytest.mark.parametrize("model", ["dlrm", "dlrm_dcn"])
def test_a_dlrm_s_checkpoint_is_served_as_init_drew_it_up(
    model: str,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As a training job left it, and with the scores of the model that was trained."""
    trained = getattr(drafted, model)().eval()
    state = {f"module.model.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, here / "last.pt")
    assert run("init", here / "serving", "--weights", here / "last.pt") == 0
    more = ("--weights", "../last.pt")
    (given,) = answers(here / "serving", monkeypatch, capfd, *more).values()
    numbers = torch.tensor([[0.5] * 5, [1.0] * 5])
    ids = KeyedJaggedTensor(
        keys=["user", "movie"],
        lengths=torch.tensor([1, 2, 1, 2]),
        values=torch.tensor([1, 1, 2, 1, 1, 2]),
    )
    expected = trained(numbers, ids).detach().reshape(-1)
    torch.testing.assert_close(torch.tensor(given), expected, atol=1e-2, rtol=0.0)


def test_what_only_an_unknown_checkpoint_s_names_tell_is_served_and_every_build_warns(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save(drafted.Untyped().state_dict(), here / "last.pt")
    assert run("init", here / "serving", "--weights", here / "last.pt") == 0
    guess = (
        "Model.forward is guessed from the shapes in last.pt: its answers are wrong until it is "
        "the forward that was trained; then delete this line"
    )
    assert f"look at {guess}\n" in capfd.readouterr().out
    monkeypatch.chdir(here / "serving")
    arguments = ("--model-name", "m", "--version", "1", "--factory", "factory:Factory")
    assert run("build", *arguments, "--weights", "../last.pt") == 0
    assert f"WARNING: factory: guessed: {guess}\n" in capfd.readouterr().err
    assert run("predict", "m.mar", "request.json") == 0
    assert len(json.loads(capfd.readouterr().out)["default"]) == 2
