"""What is told of a path that is not there."""

from pathlib import Path

import pytest

from torchrec_archiver.near import near_path, room


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("checkpoint.pt", None),
        ("checkpiont.pt", "did you mean {folder}/checkpoint.pt?"),
        ("x", "{folder} holds checkpoint.pt, runs"),
        ("run/last/model.pt", "did you mean {folder}/runs?"),
        ("runs/model.pt", "{folder}/runs is empty"),
    ],
)
def test_a_hint_names_what_is_near_or_there(tmp_path: Path, asked: str, hint: str | None) -> None:
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "runs").mkdir()
    assert near_path(tmp_path / asked) == (hint and hint.replace("{folder}", str(tmp_path)))


def test_a_hint_names_a_few(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.pt").touch()
    assert near_path(tmp_path / "weights") == (
        f"{tmp_path} holds 0.pt, 1.pt, 2.pt, 3.pt, 4.pt and 2 more"
    )


def test_a_full_disk_s_hint_names_a_way_out(tmp_path: Path) -> None:
    said = room(tmp_path)
    assert said.endswith(f" GB are free in {tmp_path}; TMPDIR names another folder to work in")
    assert float(said.split(" ")[0].replace(",", "")) >= 0
