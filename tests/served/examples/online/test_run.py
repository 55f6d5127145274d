"""The online example, for some seconds."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from examples.online import run
from torchrec_archiver.server import TorchServe


@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")
def test_the_model_that_is_trained_answers_as_trained(server: TorchServe, tmp_path: Path) -> None:
    options = run.RunOptions(output=tmp_path, seconds=5, rows_per_second=2500, place=str(tmp_path))
    try:
        result = run.run(options, server)
    finally:
        for name in run.NAMES.values():
            server.unregister(name)
    assert result.deltas == 5
    assert result.behind < 4  # of the five, whatever else the machine does
    assert result.auc[run.ONLINE] != result.auc[run.FROZEN]
    assert min(result.auc.values()) > 0.7
    assert len(list((tmp_path / "updates").glob("*.delta"))) == 5
    ET.fromstring((tmp_path / "auc.svg").read_text())  # noqa: S314  drawn here
    assert json.loads((tmp_path / "result.json").read_text())["deltas"] == 5
