"""Draw `curves.png`: losses, AP and learning rates over the epochs of a run.

Pillow draws a picture in about 0.1 seconds, and the project has no other use for a plotting library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageColor, ImageDraw, ImageFont

from .results_table import LOSS, RATE, Row

SCALE = 2
"""The picture is drawn this many times as large, then reduced, which smooths lines."""

PANEL = (640, 400)
"""Width and height of a panel in pixels."""

LEFT = 70
TOP = 66
RIGHT = 20
BOTTOM = 44
"""Margins of a plot in its panel, in pixels."""

FONT = 14
LINE = 2
DOTS_UP_TO = 30
"""Epochs are also marked with dots if there are at most so many."""

MOST_LINES = 8
"""Maximum number of lines of a panel."""

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#999999",
)
"""Okabe and Ito's palette, which people with any type of colour vision can tell apart, without yellow."""

INK = "#333333"
GRID = "#dddddd"


@dataclass(frozen=True)
class Curve:
    """Values over epochs; None and NaN interrupt the line."""

    name: str
    values: Sequence[float | None]
    ranges: Sequence[tuple[float, float] | None] = ()
    """Minimum and maximum at each epoch, drawn as a band; empty for no band."""


@dataclass(frozen=True)
class Panel:
    """A plot with a title."""

    title: str
    curves: Sequence[Curve]
    best: int | None = None
    """Index of the epoch that is highlighted."""
    logarithmic: bool = False
    """Whether the vertical axis is logarithmic; values that are not positive are not drawn."""


def draw_curves(rows: Sequence[Row], best_metric: str = "AP") -> Image.Image:
    """Draw the losses, AP and learning rates of a run.

    Args:
        rows: rows of the table (`results_table.table_row`), at least one.
        best_metric: metric whose best epoch is highlighted.

    Returns:
        A picture of 1280 x 800 pixels.
    """
    epochs = [row["epoch"] for row in rows]
    panels = [
        Panel("training loss", [_curve(rows, "loss", "loss")]),
        Panel("terms of the loss", _curves_with_prefix(rows, LOSS)),
        _accuracy_panel(rows, best_metric),
        Panel("learning rates", _rates(rows), logarithmic=True),
    ]
    width, height = PANEL
    picture = Image.new("RGB", (2 * width * SCALE, 2 * height * SCALE), "white")
    for number, panel in enumerate(panels):
        corner = (number % 2 * width, number // 2 * height)
        _Plot(ImageDraw.Draw(picture), corner, epochs, panel).draw()
    return picture.resize((2 * width, 2 * height), Image.Resampling.BOX)


def draw_panel(epochs: Sequence[int], panel: Panel) -> Image.Image:
    """Draw one plot.

    Args:
        epochs: epochs of the values of all curves, at least one.
        panel: the plot.

    Returns:
        A picture of 640 x 400 pixels.
    """
    width, height = PANEL
    picture = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    _Plot(ImageDraw.Draw(picture), (0, 0), epochs, panel).draw()
    return picture.resize(PANEL, Image.Resampling.BOX)


def _curve(rows: Sequence[Row], column: str, name: str) -> Curve:
    return Curve(name, [row.get(column) for row in rows])


def _curves_with_prefix(rows: Sequence[Row], prefix: str) -> list[Curve]:
    """Return the curves of all columns with a prefix, the first ones if there are many."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(
            name for name in row if name.startswith(prefix)
        )
    chosen = list(columns)[:MOST_LINES]
    return [_curve(rows, name, name.removeprefix(prefix)) for name in chosen]


def _accuracy_panel(rows: Sequence[Row], best_metric: str) -> Panel:
    names = list(dict.fromkeys(["AP", "AP50", best_metric]))
    curves = [_curve(rows, name, name) for name in names]
    scores = []
    for index, row in enumerate(rows):
        score = row.get(best_metric)
        if _is_number(score):
            scores.append((score, -index))
    if not scores:
        return Panel("validation", curves)
    score, negative = max(scores)
    epoch = rows[-negative]["epoch"]
    title = f"validation: best {best_metric} {score:.3f} in epoch {epoch}"
    return Panel(title, curves, best=-negative)


def _rates(rows: Sequence[Row]) -> list[Curve]:
    """Return the learning rates by group, or the largest rate if groups are not recorded."""
    return _curves_with_prefix(rows, RATE) or [_curve(rows, "lr", "largest")]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers that cover a range.

    Example:
        >>> nice_ticks(0.0, 0.87)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        >>> nice_ticks(3.0, 3.0)
        [2.0, 3.0, 4.0]

    Args:
        low: minimum of the values.
        high: maximum of the values.
        count: number of intervals.
    """
    if not high > low:
        margin = abs(high) / 3 or 1.0
        low, high, count = high - margin, high + margin, 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = 10 * power
    for factor in (1.0, 2.0, 5.0):
        if raw <= factor * power * (1 + 1e-9):
            step = factor * power
            break
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(n * step, digits) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, and twice and five times these, that cover a range of positive numbers.

    Example:
        >>> log_ticks(1e-3, 1e-2)
        [0.001, 0.002, 0.005, 0.01]

    Args:
        low: minimum of the values.
        high: maximum of the values.
    """
    ticks = []
    first = math.floor(math.log10(low)) - 1
    last = math.ceil(math.log10(high)) + 1
    # more than three decades would have too many ticks
    factors = (1, 2, 5) if high <= 1000 * low else (1,)
    for power in range(first, last + 1):
        for factor in factors:
            ticks.append(float(f"{factor}e{power}"))
    tolerance = 1 + 1e-9
    below = max(tick for tick in ticks if tick <= low * tolerance)
    above = min(tick for tick in ticks if tick * tolerance >= high)
    if below == above:
        above = min(tick for tick in ticks if tick > below)
    return [tick for tick in ticks if below <= tick <= above]


class _Plot:
    """Drawing of one panel. Coordinates are pixels of the reduced picture."""

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        corner: tuple[int, int],
        epochs: Sequence[int],
        panel: Panel,
    ) -> None:
        self.canvas = canvas
        self.panel = panel
        self.epochs = epochs
        self.font = ImageFont.load_default(FONT * SCALE)
        self.left = corner[0] + LEFT
        self.top = corner[1] + TOP
        self.right = corner[0] + PANEL[0] - RIGHT
        self.bottom = corner[1] + PANEL[1] - BOTTOM
        self.title_at = (self.left, corner[1] + 12)
        known = []
        for curve in panel.curves:
            for value in curve.values:
                if value is not None and self._is_drawn(value):
                    known.append(value)
            for limits in curve.ranges:
                known += limits or ()
        self.y_ticks: list[float] = []
        if known:
            ticks = log_ticks if panel.logarithmic else nice_ticks
            self.y_ticks = ticks(min(known), max(known))
        self.x_ticks = _epoch_ticks(epochs)

    def draw(self) -> None:
        """Draw the panel."""
        self._text(self.title_at, self.panel.title, anchor="lm")
        if not self.y_ticks:
            self._text(self._middle(), "not defined", anchor="mm")
            return
        self._draw_axes()
        if self.panel.best is not None:
            x = self._x(self.epochs[self.panel.best])
            self._line([(x, self.top), (x, self.bottom)], INK, 1)
        for curve, colour in zip(self.panel.curves, COLOURS):
            self._draw_band(curve, colour)
        for curve, colour in zip(self.panel.curves, COLOURS):
            self._draw_curve(curve, colour)
        self._draw_legend()

    def _draw_axes(self) -> None:
        for tick in self.y_ticks:
            y = self._y(tick)
            self._line([(self.left, y), (self.right, y)], GRID, 1)
            self._text((self.left - 8, y), f"{tick:g}", anchor="rm")
        for epoch in self.x_ticks:
            x = self._x(epoch)
            self._line([(x, self.bottom), (x, self.bottom + 5)], INK, 1)
            self._text((x, self.bottom + 14), str(epoch), anchor="mm")
        self._line(
            [(self.left, self.bottom), (self.right, self.bottom)], INK, 1
        )
        self._text((self._middle()[0], self.bottom + 32), "epoch", anchor="mm")

    def _draw_band(self, curve: Curve, colour: str) -> None:
        """Draw the ranges between each two neighbouring epochs, in a light tint of the colour."""
        tint = _tint(colour)
        points = list(zip(self.epochs, curve.ranges))
        for (x, left), (next_x, right) in zip(points, points[1:]):
            if left is None or right is None:
                continue
            corners = [
                (self._x(x), self._y(left[0])),
                (self._x(x), self._y(left[1])),
                (self._x(next_x), self._y(right[1])),
                (self._x(next_x), self._y(right[0])),
            ]
            scaled = [(x * SCALE, y * SCALE) for x, y in corners]
            self.canvas.polygon(scaled, tint)

    def _draw_curve(self, curve: Curve, colour: str) -> None:
        for points in self._segments(curve):
            if len(points) > 1:
                self._line(points, colour, LINE)
            if len(points) == 1 or len(self.epochs) <= DOTS_UP_TO:
                for x, y in points:
                    self._dot(x, y, colour)

    def _segments(self, curve: Curve) -> Iterator[list[tuple[float, float]]]:
        """Yield the points of each part of a curve without undefined values."""
        points: list[tuple[float, float]] = []
        for epoch, value in zip(self.epochs, curve.values):
            if value is not None and self._is_drawn(value):
                points.append((self._x(epoch), self._y(value)))
            elif points:
                yield points
                points = []
        if points:
            yield points

    def _is_drawn(self, value: Any) -> bool:
        return _is_number(value) and (value > 0 or not self.panel.logarithmic)

    def _draw_legend(self) -> None:
        """Draw the names of the lines in a row above the plot, as many as there is space for."""
        x = float(self.left)
        y = self.title_at[1] + 26
        for curve, colour in zip(self.panel.curves, COLOURS):
            length = self.font.getlength(curve.name) / SCALE
            if x + 24 + length > self.right:
                break
            self._line([(x, y), (x + 18, y)], colour, 3)
            self._text((x + 24, y), curve.name, anchor="lm")
            x += 24 + length + 16

    def _x(self, epoch: int) -> float:
        first, last = self.epochs[0], self.epochs[-1]
        if first == last:
            return self._middle()[0]
        share = (epoch - first) / (last - first)
        return self.left + 8 + share * (self.right - self.left - 16)

    def _y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        if self.panel.logarithmic:
            value, low, high = map(math.log10, (value, low, high))
        share = (value - low) / (high - low)
        return self.bottom - share * (self.bottom - self.top)

    def _middle(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def _line(
        self, points: Sequence[tuple[float, float]], colour: str, width: int
    ) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self.canvas.line(scaled, colour, width * SCALE, joint="curve")

    def _dot(self, x: float, y: float, colour: str) -> None:
        radius = 3 * SCALE
        self.canvas.ellipse(
            (
                x * SCALE - radius,
                y * SCALE - radius,
                x * SCALE + radius,
                y * SCALE + radius,
            ),
            colour,
        )

    def _text(self, at: tuple[float, float], text: str, *, anchor: str) -> None:
        place = (at[0] * SCALE, at[1] * SCALE)
        self.canvas.text(place, text, INK, self.font, anchor=anchor)


def _tint(colour: str) -> tuple[int, int, int]:
    """Return a light version of a colour: 80 % white."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return _light(red), _light(green), _light(blue)


def _light(part: int) -> int:
    return round(0.2 * part + 0.8 * 255)


def _epoch_ticks(epochs: Sequence[int]) -> list[int]:
    """Return whole epochs for the axis, the first and the last among them."""
    first, last = epochs[0], epochs[-1]
    step = max(1, round(nice_step((last - first) / 6)))
    inner = [e for e in range(first + 1, last) if e % step == 0]
    far = [e for e in inner if min(e - first, last - e) >= 0.6 * step]
    return list(dict.fromkeys([first, *far, last]))


def nice_step(raw: float) -> float:
    """Return the smallest of 1, 2, 5, 10, 20 and so on that is at least `raw`.

    Example:
        >>> nice_step(3.2), nice_step(0.4), nice_step(11)
        (5, 1, 20)
    """
    step = 1
    while step < raw:
        for factor in (1, 2, 5):
            if factor * step >= raw:
                return factor * step
        step *= 10
    return step
