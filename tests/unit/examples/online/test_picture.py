"""The picture of AUC over time."""

from xml.etree import ElementTree as ET

from examples.online.picture import draw


def test_each_line_is_drawn_in_its_scale() -> None:
    svg = draw("A & B", "how", [10.0, 20.0, 30.0], {"one": [0.71, 0.72, 0.75], "other": [0.7] * 3})
    root = ET.fromstring(svg)  # noqa: S314  drawn here
    lines = [part for part in root.iter() if part.tag.endswith("polyline")]
    points = [
        [tuple(map(float, at.split(","))) for at in line.attrib["points"].split()] for line in lines
    ]
    assert [len(line) for line in points] == [3, 3]
    assert points[0][0][1] > points[0][1][1] > points[0][2][1]
    assert len({y for _, y in points[1]}) == 1
    assert [x for x, _ in points[0]] == [304.0, 544.0, 784.0]
    said = [part.text for part in root.iter() if part.tag.endswith("text")]
    assert said[:3] == ["A & B", "how", "AUC"]
    assert said[-2:] == ["one", "other"]
    assert {"0.70", "0.76", "0", "30"} <= set(said)
