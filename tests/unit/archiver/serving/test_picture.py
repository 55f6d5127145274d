"""The picture of a load."""

from xml.etree import ElementTree as ET

import pytest

from torchrec_archiver.serving.load import Figures
from torchrec_archiver.serving.picture import draw

SVG = "{http://www.w3.org/2000/svg}"


def figures(connections: int, rows: float, rows_per_second: float, errors: int = 0) -> Figures:
    return Figures(
        connections=connections,
        rows=rows,
        rows_per_second=rows_per_second,
        requests_per_second=rows_per_second / rows,
        p50_ms=3.14,
        p99_ms=271.8,
        errors=errors,
        first_error="503",
    )


def test_every_figure_is_in_it_and_inside_of_it() -> None:
    loads = [figures(1, 1, 300.4), figures(64, 1, 7251), figures(1, 1000, 135647, errors=392)]
    svg = ET.fromstring(draw("shop <1.0>", "application/json", loads))  # noqa: S314  our own
    texts = [text.text for text in svg.iter(f"{SVG}text")]
    for text in ("shop <1.0>", "1 row a request", "1,000 rows a request", "300", "7,251"):
        assert text in texts
    assert {"135,647", "392 errors", "3.1", "272"} <= set(texts)
    width, height = float(svg.attrib["width"]), float(svg.attrib["height"])
    for element in svg.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.attrib.get(name, 0)) <= width
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.attrib.get(name, 0)) <= height


def test_bars_are_as_tall_as_rows_are_many() -> None:
    svg = ET.fromstring(draw("shop", "", [figures(1, 1, 300), figures(2, 1, 600)]))  # noqa: S314
    heights = [float(bar.attrib["height"]) for bar in list(svg.iter(f"{SVG}rect"))[1:]]
    assert heights[1] == pytest.approx(2 * heights[0])
