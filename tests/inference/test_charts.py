"""Charts are self-contained SVG."""

import xml.etree.ElementTree as ElementTree

import numpy as np

from src.inference.charts import MAX_POINTS, Line, line_chart, sparkline

SVG = "{http://www.w3.org/2000/svg}"


def read(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(
        svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    )


def test_a_line_runs_from_corner_to_corner():
    chart = read(
        line_chart(
            [Line("a", np.array([0.0, 1.0]), np.array([0.0, 1.0]))],
            "x",
            "y",
            width=200,
            height=100,
        )
    )
    assert chart.find(f"{SVG}polyline").get("points") == "44.0,64.0 190.0,10.0"


def test_long_lines_keep_their_ends_and_lose_points_between():
    x = np.linspace(0, 1, 100_000)
    points = (
        read(sparkline(Line("a", x, x)))
        .find(f"{SVG}polyline")
        .get("points")
        .split()
    )
    assert (
        len(points) == MAX_POINTS
        and points[0].startswith("1.0,")
        and points[-1].endswith(",1.0")
    )


def test_names_cannot_become_markup():
    chart = line_chart(
        [Line("<script>", np.array([0.0]), np.array([0.0]))],
        "a & b",
        "c",
        mark=0.5,
    )
    assert "<script>" not in chart and read(chart) is not None


def test_a_legend_is_left_out_where_lines_are_too_many():
    lines = [
        Line(f"class {i}", np.array([0.0, 1.0]), np.array([1.0, 0.0]))
        for i in range(13)
    ]
    assert not [
        t
        for t in read(line_chart(lines, "x", "y")).findall(f"{SVG}text")
        if t.text.startswith("class")
    ]
    assert [
        t
        for t in read(line_chart(lines[:3], "x", "y")).findall(f"{SVG}text")
        if t.text == "class 2"
    ]
