"""The online example: deltas are served within their second."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from examples.online import run


@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")
def test_the_model_that_follows_deltas_is_ahead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--output", str(tmp_path), "--seconds", "8", "--rows-per-second", "2500"]
    assert run.main(given) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["deltas"] == 8
    assert result["behind"] == 0
    assert result["auc"]["with deltas"] > result["auc"]["without"] + 0.003
    assert len(list((tmp_path / "updates").glob("*.delta"))) == 8
    ET.fromstring((tmp_path / "auc.svg").read_text())  # noqa: S314  drawn here
    assert capsys.readouterr().out.startswith("AUC 0.7")
