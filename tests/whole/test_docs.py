"""The code that docs/ shows runs, and docs/ are a site."""

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.kinds import load_archive
from tests.support.paths import ROOT
from torchrec_archiver.build import build_archive
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest, Response

ONE_GPU_EXAMPLE = """
from types import SimpleNamespace
from torchrec.datasets.criteo import DEFAULT_CAT_NAMES

def create_default_model_config():
    return SimpleNamespace(
        dense_arch_layer_sizes=[8, 4], dense_in_features=13, embedding_dim=4,
        id_list_features_keys=DEFAULT_CAT_NAMES, num_embeddings_per_feature=[10] * 26,
        over_arch_layer_sizes=[8, 1],
    )
"""
"""What docs/porting.md takes from TorchServe's example, with smaller tables."""


def blocks(page: str, language: str = "python") -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_the_engine_answers_without_a_server(movielens_archive: Path, tmp_path: Path) -> None:
    (code,) = blocks("servers.md")
    for here, there in (
        ("build/unpacked", tmp_path / "unpacked"),
        ("model_store/movielens.mar", movielens_archive),
    ):
        assert code.count(here) == 1
        code = code.replace(here, str(there))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "servers.md", "exec"), {})  # noqa: S102  the page's own
    good, bad = (line.split(" ", 1) for line in printed.getvalue().splitlines())
    assert good[0] == "application/json"
    assert 0 < json.loads(good[1])["default"][0] < 1
    assert bad == ["InvalidRequest", "float_features: missing, received nothing"]


def test_the_site_has_no_link_that_leads_nowhere(tmp_path: Path) -> None:
    sphinx = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky"]
    done = subprocess.run(
        [*sphinx, "--quiet", str(ROOT / "docs"), str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert pages < {path.stem for path in (tmp_path / "site").glob("*.html")}


def ported(folder: Path, module: str, code: str, name: str, request: object) -> object:
    """Build a factory that docs/porting.md shows with random weights, and ask what it shows."""
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    factory = getattr(importlib.import_module(module), name)
    weights = None
    if name != "AsInstalled":
        made = factory().create_predict_module(world_size=1, device="cpu")
        weights = {
            key: torch.rand(value.shape) - 0.5
            for key, value in made.predict_module.state_dict().items()
        }
    archive = build_archive(
        model_name=module,
        version="1.0",
        factory=factory,
        weights=weights,
        export_path=folder,
        archive_format="no-archive",
    )
    engine = Engine(module, load_archive(archive), Options())
    (answer,) = engine.predict([RawRequest(json.dumps(request).encode(), "application/json")])
    assert isinstance(answer, Response), answer
    return json.loads(answer.body)


@pytest.mark.filterwarnings("ignore:.*TorchScript")
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("name", ["AsInstalled", "Trained"])
def test_torchrec_s_own_example_is_served(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    _, installed, trained = blocks("porting.md")
    code = installed + trained
    request = {
        "float_features": [[1.0, 2.0, 3.0]],
        "id_list_features.lengths": [1, 1],
        "id_list_features.values": [5, 7],
    }
    answer = ported(tmp_path, f"from_torchrec_{name.lower()}", code, name, request)
    assert isinstance(answer, dict)
    assert 0 <= answer["default"][0] <= 1
    assert "raised" not in caplog.text


def test_torchserve_s_dlrm_example_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "dlrm_factory.py").write_text(ONE_GPU_EXAMPLE, encoding="utf-8")
    code, *_ = blocks("porting.md")
    request = {
        "float_features": [0.5] * 13,
        "id_list_features.lengths": [1] * 26,
        "id_list_features.values": [3] * 26,
    }
    answer = ported(tmp_path, "serve_factory", code, "Factory", request)
    assert isinstance(answer, dict)
    assert [len(answer), len(answer["score"])] == [1, 1]
