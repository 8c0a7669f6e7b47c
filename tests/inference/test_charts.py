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


def test_ticks_the_mark_and_the_legend_stand_at_their_values():
    line = Line("a", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    chart = read(
        line_chart([line] * 2, "x", "y", width=254, height=146, mark=0.25)
    )
    lines = {
        kind: [
            tuple(float(one.get(key)) for key in ("x1", "x2", "y1", "y2"))
            for one in chart.findall(f"{SVG}line")
            if one.get("class") == kind
        ]
        for kind in ("mark", "grid", None)
    }
    assert lines["mark"] == [(94, 94, 10, 110)]
    assert lines["grid"][::2] == [(44, 244, y, y) for y in range(110, 9, -20)]
    assert lines["grid"][1::2] == [(x, x, 10, 110) for x in range(44, 245, 40)]
    assert lines[None] == [(52, 68, 79, 79), (52, 68, 94, 94)]
    ticks = [
        (text.text, float(text.get("x")), float(text.get("y")))
        for text in chart.findall(f"{SVG}text")
        if text.text in ("0.0", "0.2")
    ]
    assert ticks == [
        ("0.0", 38, 114),
        ("0.0", 44, 125),
        ("0.2", 38, 94),
        ("0.2", 84, 125),
    ]
