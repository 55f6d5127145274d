"""A model store, and a temporary folder, that nothing but the test's own builds writes to."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that staging folders are made in, also those of processes the test starts."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def store(workspace: Path) -> Path:
    """An empty model store."""
    folder = workspace.parent / "model_store"
    folder.mkdir()
    return folder
