"""Correct, false and missed boxes."""

import numpy as np

from src.detection.drawing import LineStyle
from src.detection.outcomes import find_outcomes, rows_of

NAMES = {0: "cat", 1: "dog"}


def rows(*values) -> np.ndarray:
    return np.array(values, float).reshape(-1, 6)


def test_each_outcome_has_a_style_and_a_count():
    found = rows(
        [50, 50, 10, 10, 0.7, 0],
        [0, 0, 10, 10, 0.9, 0],
        [80, 80, 10, 10, 0.8, 1],
    )
    objects = rows(
        [0, 0, 10, 10, 0, 0], [80, 80, 10, 10, 0, 0], [20, 20, 5, 5, 1, 0]
    )
    outcomes = find_outcomes(found, objects, NAMES)
    assert (outcomes.correct, outcomes.false, outcomes.missed) == (1, 2, 2)
    drawn = outcomes.drawn
    assert drawn.styles == [
        LineStyle.SOLID,
        LineStyle.DASHED,
        LineStyle.DASHED,
        LineStyle.DOTTED,
        LineStyle.DOTTED,
    ]
    assert drawn.labels.tolist() == [0, 1, 0, 0, 1]
    assert drawn.scores[:3].tolist() == [0.9, 0.8, 0.7]
    assert drawn.scores[3:].isnan().all()
    assert drawn.boxes_xyxy[4].tolist() == [20, 20, 25, 25]


def test_detections_in_crowds_and_crowds_themselves_are_not_counted():
    outcomes = find_outcomes(
        rows([10, 10, 10, 10, 0.9, 0]), rows([0, 0, 100, 100, 0, 1]), NAMES
    )
    assert (outcomes.correct, outcomes.false, outcomes.missed) == (0, 0, 0)
    assert outcomes.drawn.styles == [LineStyle.SOLID]


def test_without_objects_every_detection_is_false():
    found = rows([0, 0, 10, 10, 0.9, 0])
    assert find_outcomes(found, None, NAMES).false == 1
    assert find_outcomes(rows(), None, NAMES).drawn.styles == []


def test_rows_are_made_from_corners():
    made = rows_of(np.array([[1.0, 2, 11, 22]]), [0.5], [3])
    assert made.tolist() == [[1, 2, 10, 20, 0.5, 3]]
    assert rows_of(np.zeros((0, 4)), [], []).shape == (0, 6)
