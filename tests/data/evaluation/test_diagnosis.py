"""The diagnosis of a model that finds nothing."""

import numpy as np
import pytest

from src.data.evaluation.diagnosis import diagnose

TRUTH = {
    "annotations": [
        {"image_id": 1, "bbox": [10, 10, 20, 20], "category_id": 3},
        {"image_id": 2, "bbox": [40, 40, 30, 20], "category_id": 4},
    ]
}


def detections(
    shift: float = 0, categories: tuple[int, int] = (3, 4), score: float = 0.3
) -> dict[int, np.ndarray]:
    return {
        1: np.array([[10 + shift, 10, 20, 20, score, categories[0]]]),
        2: np.array([[40 + shift, 40, 30, 20, score, categories[1]]]),
    }


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            detections(shift=100),
            "boxes do not match objects: 0 of the 2 best detections",
        ),
        (
            detections(categories=(0, 1)),
            "labels never do: found as category 0, 1, labelled 3, 4",
        ),
        (
            detections(score=0.01),
            (
                "boxes match objects (2 of the 2 best detections) and labels do, too, "
                "but scores of the best detections go from 0.010 to 0.010"
            ),
        ),
        ({}, "the model gives no detections at all"),
        ({1: np.zeros((0, 6))}, "the model gives no detections at all"),
    ],
)
def test_the_reason_is_reported(found, expected):
    assert expected in diagnose(TRUTH, found)
