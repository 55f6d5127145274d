"""Archives that one list of versions built and the other loads; `make test-versions` has both."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from tests.support.archives import good
from tests.support.other_versions import needs_the_other, run_other

pytestmark = needs_the_other


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that the other environment built."""
    return Path(run_other("build", str(tmp_path_factory.mktemp("other"))))


def test_the_others_archive_is_loaded_with_one_warning(
    others: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.testing.assert_close(
        good.scores(good.load_folder(others).module), good.expected_scores(), rtol=1e-5, atol=1e-6
    )
    (warning,) = (
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("torchrec_handler.")
    )
    assert warning.startswith("archive.json: built with torch ")
    assert f"served with torch {importlib.metadata.version('torch').partition('+')[0]}" in warning


def test_the_other_loads_an_archive_of_these_versions(tmp_path: Path) -> None:
    received = run_other("score", str(good.build(tmp_path, archive_format="no-archive")))
    torch.testing.assert_close(
        torch.tensor(received["scores"]), good.expected_scores(), rtol=1e-5, atol=1e-6
    )
    (warning,) = received["warnings"]
    assert f"built with torch {importlib.metadata.version('torch').partition('+')[0]}" in warning


def test_both_write_the_same_rows(others: Path, tmp_path: Path) -> None:
    """The format of `tables.bin` is one, whatever FBGEMM wrote it."""
    own = good.build(tmp_path, archive_format="no-archive")
    assert (others / "tables.bin").read_bytes() == (own / "tables.bin").read_bytes()
