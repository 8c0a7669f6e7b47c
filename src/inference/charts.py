"""Line charts as SVG text, small enough to be embedded in a web page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

COLOURS = (
    "#2563eb",
    "#dc2626",
    "#059669",
    "#d97706",
    "#7c3aed",
    "#0891b2",
    "#db2777",
    "#65a30d",
    "#475569",
    "#ea580c",
    "#4f46e5",
    "#0d9488",
)
MAX_POINTS = 200
"""Maximum number of points of a line; a screen cannot show more."""

LEFT = 44
TOP = 10
RIGHT = 10
BOTTOM = 36
"""Margins of the plot in pixels."""


class Line(NamedTuple):
    """A named line through points in 0..1."""

    name: str
    x: np.ndarray
    y: np.ndarray


def line_chart(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    *,
    width: int = 520,
    height: int = 320,
    mark: float | None = None,
) -> str:
    """Return a chart of lines in the unit square, with a legend if there are few lines.

    Example:
        >>> line = Line("F1", np.array([0.0, 0.5, 1.0]), np.array([0.2, 0.8, 0.0]))
        >>> svg = line_chart([line], "threshold", "F1", mark=0.5)
        >>> svg.startswith("<svg"), svg.count("<polyline")
        (True, 1)

    Args:
        lines: lines to draw.
        x_name: label of the horizontal axis.
        y_name: label of the vertical axis.
        width: width of the chart in pixels.
        height: height of the chart in pixels.
        mark: x of a vertical line that highlights a value; None draws no such line.
    """
    across = width - LEFT - RIGHT
    down = height - TOP - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{escape(y_name)} over {escape(x_name)}">'
    ]
    for tick in np.linspace(0, 1, 6):
        x = LEFT + tick * across
        y = TOP + (1 - tick) * down
        parts += [
            f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + down}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>',
            f'<text x="{x:.1f}" y="{TOP + down + 15}" text-anchor="middle">{tick:.1f}</text>',
        ]
    parts += [
        f'<text x="{LEFT + across / 2}" y="{height - 4}" text-anchor="middle">{escape(x_name)}</text>',
        f'<text transform="translate(11 {TOP + down / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_name)}</text>',
    ]
    if mark is not None:
        x = LEFT + mark * across
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + down}"/>'
        )
    for number, line in enumerate(lines):
        parts.append(
            f'<polyline fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="1.8" '
            f'points="{_points(line, LEFT, TOP, across, down)}"><title>{escape(line.name)}</title></polyline>'
        )
    if len(lines) <= len(COLOURS):
        for number, line in enumerate(lines):
            y = TOP + down - 12 - 15 * (len(lines) - 1 - number)
            parts += [
                f'<line x1="{LEFT + 8}" x2="{LEFT + 24}" y1="{y - 4}" y2="{y - 4}" '
                f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="3"/>',
                f'<text x="{LEFT + 29}" y="{y}">{escape(line.name[:40])}</text>',
            ]
    return "".join([*parts, "</svg>"])


def sparkline(line: Line, *, width: int = 110, height: int = 34) -> str:
    """Return a line without axes, for a cell of a table.

    Example:
        >>> line = Line("cat", np.array([0.0, 1.0]), np.array([1.0, 0.5]))
        >>> sparkline(line, width=100, height=50).count("<polyline")
        1
    """
    return (
        f'<svg viewBox="0 0 {width} {height}" width="{width}" class="spark" role="img" '
        f'aria-label="{escape(line.name)}">'
        f'<polyline fill="none" stroke="{COLOURS[0]}" stroke-width="1.5" '
        f'points="{_points(line, 1, 1, width - 2, height - 2)}"/></svg>'
    )


def _points(
    line: Line, left: float, top: float, across: float, down: float
) -> str:
    """Return the points of a line, in pixels, as the text of an SVG attribute."""
    if not len(line.x):
        return ""
    evenly_spread = (
        np.linspace(0, len(line.x) - 1, MAX_POINTS).round().astype(int)
    )
    chosen = np.unique(evenly_spread)
    points = []
    for x, y in zip(line.x[chosen], line.y[chosen]):
        points.append(f"{left + x * across:.1f},{top + (1 - y) * down:.1f}")
    return " ".join(points)
