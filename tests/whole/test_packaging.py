"""The sdist and the wheel made from it install and run where the repository is not."""

import re
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import torchrec_handler
from tests.support.paths import ROOT

SOURCES = ("handler", "archiver", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
NOT_SOURCES = shutil.ignore_patterns("*.egg-info", "__pycache__")
MODEL = """
import torch
from readme import Factory
torch.save(Factory().model(torch.device("cpu"), tables="cpu").state_dict(), "weights.pt")
"""

Run = Callable[[Sequence[str]], str]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from a copy, as setuptools builds beside the sources."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"),
            )
        else:
            shutil.copy(ROOT / name, folder)
    return _made(folder, "sdist")


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made from the sdist alone."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return _made(unpacked, "wheel")


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that has the wheel, its requirements and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    # Packages of this environment, without the .pth files that lead to the repository.
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = [path for path in (*site.getsitepackages(), *sys.path) if "site-packages" in path]
    (packages / "requirements.pth").write_text("\n".join(dict.fromkeys(paths)), encoding="utf-8")
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(command: Sequence[str]) -> str:
        done = subprocess.run(
            [str(folder / "bin" / command[0]), *command[1:]],
            cwd=elsewhere,
            env={"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(elsewhere)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _made(folder: Path, kind: str) -> Path:
    code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (made,) = (folder / "dist").iterdir()
    return made


def test_the_sdist_holds_what_its_users_read(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "setup.cfg", "pyproject.toml"} < names
    assert "handler/torchrec_handler/message/predictor.proto" in names


def test_the_wheel_holds_every_module_and_no_test(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {
        str(path.relative_to(ROOT / room))
        for room in ("handler", "archiver")
        for path in (ROOT / room).glob("torchrec_*/**/*.py")
    }
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"torchrec_handler/py.typed", "torchrec_archiver/py.typed"} < names
    version = torchrec_handler.__version__
    assert re.fullmatch(rf"torchrec_serve-{re.escape(version)}-py3-none-any\.whl", wheel.name)


def test_a_model_is_built_outside_the_repository(run: Run) -> None:
    place = (
        "import torchrec_handler; print(torchrec_handler.__file__, torchrec_handler.__version__)"
    )
    where, version = run(["python", "-c", place]).split()
    assert not Path(where).is_relative_to(ROOT)
    assert run(["torchrec-archiver", "--version"]).split()[-1] == version
    folder = Path(run(["python", "-c", "import os; print(os.getcwd())"]).strip())
    shutil.copy(ROOT / "tests" / "support" / "factories" / "readme_model.txt", folder / "readme.py")
    run(["python", "-c", MODEL])
    build = "torchrec-archiver build --model-name readme --version 1.0 --factory readme:Factory"
    run([*build.split(), "--weights", "weights.pt"])
    assert "float_features" in run(["torchrec-archiver", "inspect", "readme.mar"])
