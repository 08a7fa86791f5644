"""Charts are SVG that parses, and their points stand where their values are."""

import itertools
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from feeder.tools.plotting import Chart, Line, draw_charts, write_charts

SVG = "{http://www.w3.org/2000/svg}"


def chart(*lines: Line, logarithmic: bool = False) -> Chart:
    labels = ("1", "2", "all")
    return Chart(title="A < B & C", x_name="window", x_labels=labels, lines=lines, logarithmic=logarithmic)


def drawn(*charts: Chart) -> ET.Element:
    return ET.fromstring(draw_charts(charts))


def heights(root: ET.Element, number: int = 0) -> list[float]:
    """Return the y coordinates of a line's points; they grow downwards."""
    points = root.findall(f".//{SVG}polyline")[number].attrib["points"].split()
    return [float(point.split(",")[1]) for point in points]


def texts(root: ET.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_values_are_heights() -> None:
    root = drawn(chart(Line(name="x", values=[0, 5, 10])))
    low, middle, high = heights(root)
    assert low == 250
    assert high == 40
    assert middle == pytest.approx(145, abs=0.1)
    assert {"A < B & C", "window", "1", "2", "all", "x", "0", "10"} <= set(texts(root))


def test_a_logarithmic_axis_has_equal_steps_for_equal_ratios() -> None:
    root = drawn(chart(Line(name="x", values=[1, 100, 10_000]), logarithmic=True))
    low, middle, high = heights(root)
    assert low - middle == pytest.approx(middle - high, abs=0.2)
    assert {"1", "10", "100", "1000", "10000"} <= set(texts(root))


@pytest.mark.parametrize("values", [[0.97, 1, 1.02], [3, 3, 3], [0, 0, 0], [1e-9, 2e-9, 3e-9], [-4, 0, 700_000]])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_every_value_lies_within_the_frame(values: list[float], logarithmic: bool) -> None:
    root = drawn(chart(Line(name="x", values=values), logarithmic=logarithmic))
    if logarithmic and max(values) <= 0:
        assert root.findall(f".//{SVG}polyline") == []
        return
    found = heights(root)
    assert len(found) == sum(value > 0 or not logarithmic for value in values)
    assert all(39.9 <= height <= 250.1 for height in found)


def test_gaps_are_left_out_and_names_do_not_cover_each_other() -> None:
    lines = [Line(name=f"line {i}", values=[1, None, 2 + i / 1000], dashed=i == 2) for i in range(3)]
    root = drawn(chart(*lines))
    assert [len(heights(root, i)) for i in range(3)] == [2, 2, 2]
    names = [e for e in root.iter(f"{SVG}text") if (e.text or "").startswith("line")]
    rows = sorted(float(e.attrib["y"]) for e in names)
    assert all(b - a >= 14 - 0.2 for a, b in itertools.pairwise(rows))
    assert len([e for e in root.iter(f"{SVG}polyline") if "stroke-dasharray" in e.attrib]) == 1


def test_charts_stand_one_below_another_in_one_file(tmp_path: Path) -> None:
    charts = [chart(Line(name="x", values=[1, 2, 3])), chart(Line(name="y", values=[1, 2, 3]))]
    write_charts(tmp_path / "a.svg", charts)
    text = (tmp_path / "a.svg").read_text()
    assert text == draw_charts(charts)
    root = ET.fromstring(text)
    assert root.attrib["height"] == "600"
    assert len(root.findall(f"{SVG}g")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]
