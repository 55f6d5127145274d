"""What requirements.txt lists is there, or loading says what is missing and what to set."""

import json
import logging
from pathlib import Path

import pytest

from torchrec_handler.archive.format import MANIFEST
from torchrec_handler.errors import ArchiveError
from torchrec_handler.load.requirements import check_requirements


def archive(folder: Path, text: str | None) -> Path:
    """As much of an archive as is read here; None for a manifest that lists nothing."""
    model = {"serializedFile": "predict_factory.pt"}
    if text is not None:
        model["requirementsFile"] = "requirements.txt"
        (folder / "requirements.txt").write_text(text)
    (folder / MANIFEST).parent.mkdir()
    (folder / MANIFEST).write_text(json.dumps({"model": model}))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "numpy\nNumPy>=1\n",
        "# a comment\n--no-index\n-r more.txt\n--find-links=/wheels\nnumpy  # the arrays\n",
        "numpy>=1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n",
        "httpx[http2]\nabsent-thing; python_version < '3'\n",
        "torch @ https://example.org/torch.whl\n./local/folder\nhttps://example.org/a.tar.gz\n",
        "fbgemm-gpu\n",
    ],
)
def test_what_is_there_is_no_error(
    text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """fbgemm-gpu is one whose module may be another distribution's, fbgemm-gpu-cpu."""
    check_requirements(archive(tmp_path, text))
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("numpy\nabsent-thing>=2\nabsent.too\n", "absent-thing, absent.too"),
        ("--no-index\n/wheels/absent_thing-1.0-py3-none-any.whl\n", "absent-thing"),
        ("absent-thing @ https://example.org/thing.whl\n", "absent-thing"),
    ],
)
def test_what_is_missing_is_named_with_the_setting_that_installs_it(
    text: str, missing: str, tmp_path: Path
) -> None:
    with pytest.raises(ArchiveError) as raised:
        check_requirements(archive(tmp_path, text))
    assert str(raised.value) == (
        f"requirements.txt: {missing} not installed; put install_py_dep_per_model=true into "
        "TorchServe's config.properties, which installs the list for the model, or install it here"
    )


def test_another_version_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_requirements(archive(tmp_path, "packaging<1\n"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith(", expected packaging<1")
    assert record.getMessage().startswith("requirements.txt: received packaging 2")
