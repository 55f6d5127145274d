"""Archives that one list of versions built and the other serves; `make test-versions` has both."""

from pathlib import Path

import pytest
import torch

from tests.support.archives import good
from tests.support.other_versions import needs_the_other, run_other
from torchrec_archiver.server import TorchServe

pytestmark = needs_the_other


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that the other environment built."""
    return Path(run_other("build", str(tmp_path_factory.mktemp("other"))))


def test_the_others_archive_is_served(others: Path, server: TorchServe) -> None:
    registered = server.register(others)
    assert registered.is_success, registered.text
    try:
        answer = server.predict("ranking", good.request())
        received = torch.tensor(answer.json()["logit"])
        torch.testing.assert_close(received, good.expected_scores(), rtol=1e-5, atol=1e-6)
        assert server.logs_soon("archive.json: built with torch ")
    finally:
        server.unregister("ranking")
