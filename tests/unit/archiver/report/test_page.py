"""The page: whole, of text alone, and written where it can be."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.archives import hostile
from torchrec_archiver.__main__ import main
from torchrec_archiver.report.page import page
from torchrec_handler.archive.read import Call

DESCRIPTION = hostile.described()
TIMES = {
    Call("forward", 1): {"read": 1e-5, "predict": 2e-4},
    Call("forward", 4): {"read": 2e-5, "predict": 4e-4},
}


def pictures(text: str) -> list[str]:
    """On a broad screen."""
    return re.findall(r'<svg [^>]* class="broad".*?</svg>', text, flags=re.DOTALL)


def test_a_page_names_the_model_and_draws_its_tables() -> None:
    text = page(DESCRIPTION, Path("store/shop.mar"))
    assert "<title>shop 1.0</title>" in text
    assert "<bdi>shop.mar</bdi>" in text
    sizes, errors = pictures(text)
    assert re.findall(r"<title>(.*?)</title>", sizes) == ["t_movie: 24 B", "t_user: 12 B"]
    assert re.findall(r"<title>(.*?)</title>", errors) == ["t_movie: 0.002", "t_user: 0.001"]
    assert "not taken: inspect --html FILE --time loads the model" in text


def test_times_are_a_picture_and_a_table() -> None:
    text = page(DESCRIPTION, Path("shop.mar"), TIMES)
    assert re.findall(r"<title>(.*?)</title>", pictures(text)[2]) == [
        *("forward, 1 row: 210 µs", "forward, 4 rows: 420 µs"),
    ]
    assert "Time of one request, here" in text
    assert "not taken" not in text


def test_many_tables_are_thirty_and_the_rest() -> None:
    index = hostile.index(f"t_{at}" for at in range(100))
    first, second = pictures(page(replace(DESCRIPTION, index=index), Path("shop.mar")))
    for picture, rest in ((first, "29.8 kB"), (second, "0.07")):
        titles = re.findall(r"<title>(.*?)</title>", picture)
        assert len(titles) == 31
        assert titles[0].startswith("t_99: ")
        assert titles[-1] == f"70 others: {rest}"
    one_more = hostile.index(f"t_{at}" for at in range(31))
    (first, _) = pictures(page(replace(DESCRIPTION, index=one_more), Path("shop.mar")))
    assert "others" not in first


def test_tables_without_errors_are_not_drawn() -> None:
    known, unknown = DESCRIPTION.index.tables
    unknown = replace(unknown, max_error=None, mean_error=None)
    index = replace(DESCRIPTION.index, tables=(known, unknown))
    text = page(replace(DESCRIPTION, index=index), Path("shop.mar"))
    assert "; 1 table without float rows to compare with" in text
    assert len(re.findall("<title>", pictures(text)[1])) == 1
    index = replace(DESCRIPTION.index, tables=())
    assert pictures(page(replace(DESCRIPTION, index=index), Path("shop.mar"))) == []


def test_a_page_needs_nothing_else_and_runs_nothing() -> None:
    description = replace(
        DESCRIPTION,
        index=hostile.evil(),
        model={"modelName": hostile.EVIL, "modelVersion": hostile.EVIL},
        sizes={hostile.EVIL: 1},
    )
    times = {Call(hostile.EVIL, 1): {"read": 1.0}}
    text = page(description, Path(hostile.EVIL), times)
    text.encode()
    tags = set(re.findall(r"<([a-z0-9]+)", text))
    assert not tags & {"script", "img", "link", "iframe", "object", "a", "form", "base"}
    assert not re.findall(r"<[^>]*\s(?:on\w+|src|href|style)=", text)
    assert "url(" not in text
    assert text.count("default-src 'none'".replace("'", "&#39;")) == 1


def test_a_page_is_written_and_its_path_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = hostile.write(tmp_path / "shop.mar", hostile.evil())
    path = tmp_path / "report.html"
    assert main(["inspect", str(archive), "--html", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_page_that_cannot_be_written_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = hostile.write(tmp_path / "shop.mar", hostile.index([]))
    path = tmp_path / "nowhere" / "report.html"
    assert main(["inspect", str(archive), "--html", str(path)]) == 1
    said = f"ERROR: html: {path} cannot be written (No such file or directory)\n"
    assert capsys.readouterr() == ("", said)


def test_an_archive_without_samples_cannot_be_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = hostile.write(tmp_path / "shop.mar", hostile.index([]))
    assert main(["inspect", str(archive), "--time"]) == 1
    said = "samples.safetensors: the archive has no samples to time; build it with --samples"
    assert capsys.readouterr() == ("", f"ERROR: {said}\n")
