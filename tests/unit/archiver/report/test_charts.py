"""Pictures: what is drawn, and how long."""

import xml.etree.ElementTree as ET

import pytest

from tests.support.archives.hostile import EVIL, SHOWN
from torchrec_archiver.report.charts import Bar, Range, bars, ranges

SVG = "{http://www.w3.org/2000/svg}"


def drawn(picture: str) -> ET.Element:
    return ET.fromstring(picture)  # noqa: S314  our own


def widths(picture: ET.Element) -> list[float]:
    """Of the bars, without the squares of the legend."""
    found = picture.iter(f"{SVG}rect")
    return [float(each.attrib["width"]) for each in found if each.attrib["height"] == "14"]


def texts(picture: ET.Element) -> list[str]:
    return [each.text or "" for each in picture.iter(f"{SVG}text")]


def test_bars_are_as_long_as_their_values() -> None:
    picture = drawn(bars([Bar("a", (300,), "300 B"), Bar("b", (150,), "150 B")], "Bytes"))
    assert widths(picture) == [600, 300]
    assert texts(picture) == ["a", "300 B", "b", "150 B"]
    assert [each.text for each in picture.iter(f"{SVG}title")] == ["a: 300 B", "b: 150 B"]
    assert picture.attrib["aria-label"] == "Bytes"


def test_values_of_series_stand_behind_each_other() -> None:
    picture = drawn(bars([Bar("a", (1, 2), "3"), Bar("b", (3, 3), "6")], "Time", ["read", "write"]))
    assert widths(picture) == [100, 200, 300, 300]
    places = [each.attrib for each in picture.iter(f"{SVG}rect") if each.attrib["height"] == "14"]
    assert [place["x"] for place in places] == ["200.0", "300.0", "200.0", "500.0"]
    assert texts(picture)[:2] == ["read", "write"]
    assert len({place["fill"] for place in places}) == 2


@pytest.mark.parametrize("values", [[], [0], [0, 0]])
def test_nothing_to_draw_is_drawn(values: list[float]) -> None:
    picture = drawn(bars([Bar("a", (value,), "0 B") for value in values], "Bytes"))
    assert widths(picture) == [0] * len(values)


def circles(picture: ET.Element) -> list[float]:
    """Places of the ends, without the legend's."""
    return [
        float(each.attrib["cx"])
        for each in picture.iter(f"{SVG}circle")
        if each.attrib.get("cy") == "11"
    ]


def test_ranges_stand_on_a_logarithmic_scale() -> None:
    lines = [Range("a", 0.001, 0.1, "0.1"), Range("b", 0.01, 1, "1")]
    picture = drawn(ranges(lines, "Error", "mean", "largest"))
    assert circles(picture) == [200, 600, 400, 800]
    assert texts(picture) == [
        *("mean", "largest", "1e-3", "1e-2", "1e-1", "1e0", "a", "0.1", "b", "1"),
    ]


def test_what_is_nothing_has_no_place_on_it() -> None:
    lines = [Range("a", 0, 0, "0"), Range("b", 0, 10, "10")]
    picture = drawn(ranges(lines, "Error", "mean", "largest"))
    assert circles(picture) == [200]
    assert texts(picture)[2:] == ["1e1", "1e2", "a", "0", "b", "10"]
    assert circles(drawn(ranges([Range("a", 0, 0, "0")], "Error", "mean", "largest"))) == []


def test_a_scale_has_few_lines_however_long_it_is() -> None:
    picture = drawn(ranges([Range("a", 5e-324, 1.7e308, "?")], "Error", "mean", "largest"))
    assert len([text for text in texts(picture) if text.startswith("1e")]) <= 9


def test_labels_are_text_and_fit() -> None:
    for picture in (
        drawn(bars([Bar(EVIL, (1,), "1 B")], EVIL)),
        drawn(ranges([Range(EVIL, 1, 2, "2")], EVIL, "mean", "largest")),
    ):
        assert f"{SHOWN[:24]}…" in texts(picture)
        assert not list(picture.iter(f"{SVG}script"))
    assert [each.text for each in picture.iter(f"{SVG}title")] == [f"{SHOWN}: 2"]
