"""The picture of losses, AP and learning rates."""

import math

import numpy as np
import pytest

from src.solver.curves import (
    BOTTOM,
    COLOURS,
    LEFT,
    PANEL,
    RIGHT,
    TOP,
    Curve,
    Panel,
    draw_curves,
    draw_panel,
    log_ticks,
    nice_step,
    nice_ticks,
)


def row(epoch: int, **changes) -> dict:
    values = {
        "epoch": epoch,
        "loss": 40.0 / epoch,
        "AP": 0.01 * epoch,
        "AP50": 0.02 * epoch,
        "lr": 1e-3,
        "loss_vfl": 20.0 / epoch,
        "loss_bbox": 10.0 / epoch,
        "lr_backbone": 1e-5,
        "lr_default": 1e-3,
    }
    return values | changes


def colour_of(number: int) -> np.ndarray:
    text = COLOURS[number]
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def has_line(picture, panel: int, number: int) -> bool:
    """Return whether a line is drawn within the plot of a panel."""
    pixels = np.asarray(picture).astype(int)
    left = panel % 2 * PANEL[0]
    top = panel // 2 * PANEL[1]
    plot = pixels[
        top + TOP : top + PANEL[1] - BOTTOM,
        left + LEFT : left + PANEL[0] - RIGHT,
    ]
    return bool((np.abs(plot - colour_of(number)).sum(2) < 30).any())


def test_each_panel_has_its_lines():
    picture = draw_curves([row(epoch) for epoch in range(1, 6)])
    drawn = []
    for panel in range(4):
        drawn.append([has_line(picture, panel, n) for n in range(3)])
    assert drawn == [
        [True, False, False],
        [True, True, False],
        [True, True, False],
        [True, True, False],
    ]


@pytest.mark.parametrize("epochs", [1, 2, 31, 300])
def test_a_run_of_any_length_is_drawn(epochs):
    rows = [row(epoch) for epoch in range(1, epochs + 1)]
    assert has_line(draw_curves(rows), 2, 1)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_an_undefined_value_interrupts_its_line(value):
    rows = [row(1), row(2, AP=value), row(3)]
    assert has_line(draw_curves(rows), 2, 0)
    nothing = [row(1, AP=value, AP50=value)]
    assert not has_line(draw_curves(nothing), 2, 0)


@pytest.mark.parametrize(("metric", "best"), [("AP", 1), ("AP50", 2)])
def test_the_best_epoch_of_the_chosen_metric_has_a_vertical_line(metric, best):
    rows = [row(1, AP=0.5, AP50=0.1), row(2, AP=0.1, AP50=0.5)]
    pixels = np.asarray(draw_curves(rows, metric)).astype(int)
    plot = pixels[
        PANEL[1] + TOP : 2 * PANEL[1] - BOTTOM, LEFT : PANEL[0] - RIGHT
    ]
    is_dark = plot.sum(2) < 3 * 0x60
    columns = np.flatnonzero(is_dark.mean(0) > 0.8)
    assert len(columns) in (1, 2)
    assert (columns < plot.shape[1] / 2).all() == (best == 1)


def test_a_rate_of_zero_is_left_out_of_the_logarithmic_axis():
    rows = [row(1, lr_backbone=0.0), row(2, lr_backbone=0.0)]
    picture = draw_curves(rows)
    assert not has_line(picture, 3, 0) and has_line(picture, 3, 1)


def test_without_rates_of_groups_the_largest_rate_is_drawn():
    rows = [{"epoch": 1, "loss": 1.0, "lr": 1e-3}]
    assert has_line(draw_curves(rows), 3, 0)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 0.87), (3.0, 3.0), (-1.0, 1e5), (0.0, 0.0), (1e-9, 2e-9)],
)
def test_ticks_are_few_and_cover_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and high <= ticks[-1]
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))


@pytest.mark.parametrize(
    ("low", "high"), [(1e-5, 1e-5), (1.1e-5, 2e-4), (1e-8, 1e-2), (3.0, 900.0)]
)
def test_logarithmic_ticks_cover_the_values(low, high):
    ticks = log_ticks(low, high)
    assert ticks[0] <= low and high <= ticks[-1]
    assert 2 <= len(ticks) <= 11 and ticks == sorted(set(ticks))


def test_steps_between_epochs_are_round():
    assert [nice_step(n) for n in (0.4, 1, 3.2, 11, 21, 300)] == [
        1,
        1,
        5,
        20,
        50,
        500,
    ]


def test_a_band_is_drawn_in_a_tint_between_the_limits_of_a_curve():
    ranges = [(0.0, 1.0), None, (0.2, 0.8), (0.2, 0.8)]
    curve = Curve("mean", [0.5, None, 0.5, 0.5], ranges)
    picture = draw_panel([1, 2, 3, 4], Panel("AP", [curve]))
    pixels = np.asarray(picture).astype(int)
    light = np.round(0.2 * colour_of(0) + 204)
    is_tint = (np.abs(pixels - light) < 2).all(-1)
    plot = is_tint[TOP : PANEL[1] - BOTTOM, LEFT : PANEL[0] - RIGHT]
    third = plot.shape[1] // 3
    # an epoch without a range interrupts the band
    assert not plot[:, : 2 * third - 8].any()
    assert plot[:, 2 * third + 20 : -20].any(0).all()
