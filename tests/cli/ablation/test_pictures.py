"""The plot of a study."""

import numpy as np

from src.cli.ablation.comparison import Summary
from src.cli.ablation.pictures import draw_comparison
from src.cli.ablation.records import Epoch, Outcome, Record
from src.solver.curves import COLOURS


def outcome(*scores: float) -> Outcome:
    epochs = [Epoch(n, score, score, 1.0, n) for n, score in enumerate(scores)]
    return Outcome(Record(is_complete=True), epochs)


def count(picture, colour: tuple[int, int, int]) -> int:
    pixels = np.asarray(picture.convert("RGB"))
    return int((pixels == np.array(colour)).all(-1).sum())


def rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


def tint(text: str) -> tuple[int, int, int]:
    red, green, blue = (round(0.2 * part + 204) for part in rgb(text))
    return red, green, blue


def test_each_variant_has_a_line_and_a_band():
    wide = {0: outcome(0.1, 0.2, 0.3), 1: outcome(0.3, 0.4, 0.5)}
    summaries = [
        Summary("old", wide, None),
        Summary("new", {0: outcome(0.6, 0.7, 0.8)}, None),
    ]
    picture = draw_comparison("AP", summaries)
    assert picture.size == (640, 400)
    assert count(picture, rgb(COLOURS[0])) > 100
    assert count(picture, rgb(COLOURS[1])) > 100
    assert count(picture, tint(COLOURS[0])) > 5000
    assert count(picture, tint(COLOURS[1])) < 500


def test_a_variant_without_a_complete_run_is_left_out():
    summaries = [
        Summary("old", {}, None),
        Summary("new", {0: outcome(0.6, 0.7)}, None),
    ]
    picture = draw_comparison("AP", summaries)
    assert count(picture, rgb(COLOURS[0])) > 100
    assert count(picture, rgb(COLOURS[1])) == 0


def test_runs_that_end_early_shorten_the_line():
    runs = {0: outcome(0.1, 0.2, 0.3), 1: outcome(0.3)}
    picture = draw_comparison("AP", [Summary("old", runs, None)])
    assert count(picture, tint(COLOURS[0])) < 500
