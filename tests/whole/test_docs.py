"""The code that docs/other-servers.md shows runs."""

import contextlib
import io
import json
import re
from pathlib import Path

from tests.support.paths import ROOT


def test_the_engine_answers_without_a_server(movielens_archive: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "other-servers.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    for here, there in (
        ("build/unpacked", tmp_path / "unpacked"),
        ("model_store/movielens.mar", movielens_archive),
    ):
        assert code.count(here) == 1
        code = code.replace(here, str(there))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "other-servers.md", "exec"), {})  # noqa: S102  the page's own
    good, bad = (line.split(" ", 1) for line in printed.getvalue().splitlines())
    assert good[0] == "application/json"
    assert 0 < json.loads(good[1])["default"][0] < 1
    assert bad == ["InvalidRequest", "float_features: missing, received nothing"]
