"""Draw AP by epoch of the variants of a plan: the mean over seeds, and the range as a band."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from PIL import Image

from ...solver.curves import MOST_LINES, Curve, Panel, draw_panel
from .comparison import Summary


def draw_comparison(title: str, summaries: Sequence[Summary]) -> Image.Image:
    """Draw the variants of a plan on one task.

    Args:
        title: title of the plot.
        summaries: results of all variants; those without a complete run are left out.

    Returns:
        A picture of 640 x 400 pixels.
    """
    shown = [summary for summary in summaries if summary.outcomes]
    epochs = sorted(
        {
            epoch.number
            for summary in shown
            for run in summary.outcomes.values()
            for epoch in run.epochs
        }
    )
    curves = [_curve(summary, epochs) for summary in shown[:MOST_LINES]]
    return draw_panel(epochs, Panel(title, curves))


def _curve(summary: Summary, epochs: Sequence[int]) -> Curve:
    """Return mean and range of AP at each epoch that all runs of a variant have."""
    scores = []
    for run in summary.outcomes.values():
        scores.append({epoch.number: epoch.ap for epoch in run.epochs})
    means: list[float | None] = []
    ranges: list[tuple[float, float] | None] = []
    for epoch in epochs:
        known = [run[epoch] for run in scores if epoch in run]
        is_common = len(known) == len(scores)
        means.append(statistics.mean(known) if is_common else None)
        ranges.append((min(known), max(known)) if is_common else None)
    return Curve(summary.name, means, ranges)
