"""An archive that other versions serve than built it is served, with one warning."""

import logging

import pytest

from torchrec_handler.load import versions
from torchrec_handler.load.versions import installed, warn_of_versions


def test_what_is_installed_is_named() -> None:
    found = installed()
    assert {"torchrec-serve", "torch", "torchrec"} <= set(found)
    assert {"fbgemm-gpu", "fbgemm-gpu-cpu"} & set(found)


def test_its_own_versions_are_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_versions(installed())
    warn_of_versions({})
    assert not caplog.records


@pytest.mark.parametrize(
    ("built_with", "served_with"),
    [
        ({"torch": "2.13.0+cpu"}, {"torch": "2.13.0"}),
        ({"fbgemm-gpu": "1.8.0"}, {"fbgemm-gpu-cpu": "1.8.0"}),
        ({"torchrec-serve": "0.1.0"}, {"torchrec-serve": "0.2.0"}),
        ({"fbgemm-gpu": "1.8.0"}, {}),
    ],
)
def test_builds_of_one_version_are_the_same(
    built_with: dict[str, str],
    served_with: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor is another version of this project, whose format has a version of its own."""
    monkeypatch.setattr(versions, "installed", lambda: served_with)
    warn_of_versions(built_with)
    assert not caplog.records


def test_other_versions_are_one_warning_that_names_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    served_with = {"torch": "2.14.1", "torchrec": "1.9.2", "fbgemm-gpu-cpu": "1.9.0"}
    monkeypatch.setattr(versions, "installed", lambda: served_with)
    warn_of_versions({"torch": "2.14.1+cpu", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0"})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "archive.json: built with torchrec 1.8.0, FBGEMM 1.8.0, served with torchrec 1.9.2, "
        "FBGEMM 1.9.0; it is served, but build it again with the versions that serve it"
    )
