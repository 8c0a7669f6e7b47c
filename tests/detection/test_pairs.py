"""Ground truth and predictions side by side."""

import numpy as np
import torch

from src.detection.drawing import DrawnObjects
from src.detection.outcomes import find_outcomes
from src.detection.pairs import (
    GAP,
    ImagePair,
    captioned_pair,
    draw_pair,
    legend,
    side_by_side,
)

NAMES = {0: "cat", 1: "dog"}


def pair_of(rows: list[list[float]], height=400, width=400) -> ImagePair:
    """Return an image with one cat and detections."""
    image = torch.full((3, height, width), 128, dtype=torch.uint8)
    truth = DrawnObjects.of_labels(
        np.array([[100.0, 150, 300, 350]]), np.array([0]), NAMES
    )
    objects = np.array([[100.0, 150, 200, 200, 0, 0]])
    found = np.array(rows, float).reshape(-1, 6)
    outcomes = find_outcomes(found, objects, NAMES)
    return ImagePair(image, truth, outcomes, "a.jpg", 0.5)


def test_pictures_stand_side_by_side_with_a_white_gap():
    pictures = [torch.full((3, 10, width), 128).byte() for width in (20, 30)]
    row = side_by_side(pictures)
    assert row.shape == (3, 10, 50 + GAP)
    assert (row[:, :, 20 : 20 + GAP] == 255).all()


def test_the_truth_does_not_depend_on_the_predictions():
    right = pair_of([[100, 150, 200, 200, 0.9, 0]])
    wrong = pair_of([[10, 10, 50, 50, 0.9, 1]])
    (truth, one), (same, other) = draw_pair(right), draw_pair(wrong)
    assert torch.equal(truth, same) and not torch.equal(one, other)


def test_a_missed_object_is_drawn_among_the_predictions():
    _, predictions = draw_pair(pair_of([]))
    line = predictions[:, 349, 100:300]
    assert (line == 255).all(0).any()  # the white line between the dots
    assert predictions[:, 250, 100].tolist() != [128, 128, 128]


def test_correct_and_false_boxes_can_be_distinguished_without_colours():
    def line(rows: list[list[float]]) -> torch.Tensor:
        _, predictions = draw_pair(pair_of(rows))
        grey = predictions.float().mean(0).round()
        return grey[60:140, 20]

    solid = line([[100, 150, 200, 200, 0.9, 0]])
    assert (solid == 128).all()  # nothing is there
    false = line([[20, 50, 60, 100, 0.9, 0]])
    assert (false == 128).any() and (false != 128).any()


def test_the_legend_has_all_counts():
    pair = pair_of([[100, 150, 200, 200, 0.9, 0], [10, 10, 50, 50, 0.8, 1]])
    texts = [part for part in legend(pair) if isinstance(part, str)]
    assert texts == ["correct 1", "false 1", "missed 0"]


def test_a_captioned_pair_has_two_pictures_of_the_size_that_was_asked_for():
    plain = captioned_pair(pair_of([]), (200, 300))
    assert plain.shape[2] == 2 * 300 + GAP
    assert 200 + 2 * 9 <= plain.shape[1] <= 200 + 2 * 20


def test_a_small_image_is_enlarged():
    pair = pair_of([], height=100, width=100)
    truth, predictions = draw_pair(pair)
    assert truth.shape == predictions.shape == (3, 400, 400)
