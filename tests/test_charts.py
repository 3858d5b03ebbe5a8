"""The charts: where points are, what labels say, and that nothing in them is markup."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from styleengine.ui.charts import BOTTOM, HEIGHT, LABEL_HEIGHT, LEFT, RIGHT, TOP, WIDTH, lines, scatter

SVG = "{http://www.w3.org/2000/svg}"


def texts(chart: str) -> list[tuple[str, float, float]]:
    found = ElementTree.fromstring(chart).iter(f"{SVG}text")
    return [(text.text or "", float(text.attrib["x"]), float(text.attrib["y"])) for text in found]


def test_points_lie_where_their_values_are() -> None:
    chart = ElementTree.fromstring(scatter([("origin", 0, 0), ("far", 10, 5)], "x", "y"))
    origin, far = ((float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in chart.iter(f"{SVG}circle"))
    assert origin == (LEFT, HEIGHT - BOTTOM)
    assert far[0] == pytest.approx(LEFT + (WIDTH - LEFT - RIGHT) * 10 / 12, abs=0.1)
    assert far[1] == pytest.approx(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * 5 / 6, abs=0.1)


def test_ticks_from_zero_are_round_numbers() -> None:
    numbers = [text for text, *_ in texts(scatter([("a", 0.338, 0.936)], "x", "y")) if text.replace(".", "").isdigit()]
    assert sorted(numbers) == sorted(["0", "0.1", "0.2", "0.3", "0.4", "0", "0.25", "0.5", "0.75", "1"])


def test_labels_of_near_points_do_not_overlap() -> None:
    chart = scatter([("a", 0.3, 0.25), ("b", 0.3, 0.251), ("c", 0.3, 0.252)], "x", "y")
    rows = sorted(y for text, _, y in texts(chart) if text in ("a", "b", "c"))
    assert min(high - low for low, high in pairwise(rows)) >= LABEL_HEIGHT - 0.1


def test_a_line_goes_from_its_first_to_its_last_value() -> None:
    chart = ElementTree.fromstring(lines({"loss": [(0, 0.76), (25, 0.75), (50, 0.74)]}, "Loss", "step", "loss"))
    (line,) = chart.iter(f"{SVG}polyline")
    places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
    assert places[0] == (LEFT, TOP)
    assert places[-1] == (WIDTH - RIGHT, HEIGHT - BOTTOM)
    assert chart.attrib["aria-label"] == "Loss. At the end: loss: loss 0.74"


def test_several_lines_are_named_at_their_ends() -> None:
    chart = lines({"result": [(2, 0.1), (3, 0.2)], "clip": [(2, 0.3), (3, 0.1)]}, "Difference", "frame", "difference")
    assert {"result", "clip"} <= {text for text, *_ in texts(chart)}


@pytest.mark.parametrize(
    "chart", [scatter([], "x", "y"), lines({}, "t", "x", "y"), lines({"a": [(1, 2)]}, "t", "x", "y")]
)
def test_few_or_no_values_give_a_chart(chart: str) -> None:
    assert "nan" not in chart
    assert ElementTree.fromstring(chart).tag == f"{SVG}svg"


def test_labels_are_text() -> None:
    chart = scatter([("<script>alert(1)</script>", 1, 1)], '"x"', "y")
    assert not re.search("<script", chart)
    assert "<script>alert(1)</script>" in {text for text, *_ in texts(chart)}
