"""Boxes around polygons and masks, and what has none."""

import numpy as np
import pytest
from pycocotools import mask as masks

from src.data.dataset.segmentation import box_of_segmentation, mask_size

MASK = np.zeros((30, 40), np.uint8, order="F")
MASK[5:15, 7:27] = 1
COMPRESSED = {"size": [30, 40], "counts": masks.encode(MASK)["counts"].decode()}


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        ([[1, 2, 9, 2, 9, 7]], [1, 2, 8, 5]),
        ([1, 2, 9, 2, 9, 7], [1, 2, 8, 5]),
        ([[1, 2, 9, 2, 9, 7], [20, 3, 22, 3, 22, 9.5]], [1, 2, 21, 7.5]),
        (COMPRESSED, [7, 5, 20, 10]),
        (
            {"size": [30, 40], "counts": [215, *[10, 20] * 19, 10, 405]},
            [7, 5, 20, 10],
        ),
        ([[1, 2], [9, 2], [9, 7]], [1, 2, 8, 5]),
        ([[1, 2, 9, 2, 9, 7], [1, 2, 3, 4], []], [1, 2, 8, 5]),
        ([COMPRESSED], [7, 5, 20, 10]),
        ({**COMPRESSED, "size": [30.0, 40.0]}, [7, 5, 20, 10]),
        ({"size": [30, 40], "counts": [29, 2, 1169]}, [0, 0, 2, 30]),
    ],
    ids=[
        "polygon",
        "flat polygon",
        "two polygons",
        "compressed mask",
        "runs",
        "points",
        "a ring of two points beside a whole one",
        "a list with a mask",
        "a size of floats",
        "a run over the end of a column",
    ],
)
def test_a_box_surrounds_its_polygons_or_mask(segmentation, box):
    assert box_of_segmentation(segmentation) == pytest.approx(box)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 1, 2, 1, 9]],
        [[1, 2, "3", 4, 5, 6]],
        [[1, 2, float("nan"), 4, 5, 6]],
        [[1, 2, 3, 4, 5, 6], "x"],
        "polygon",
        7,
        {},
        {"size": [30, 40]},
        {"size": [30], "counts": [1200]},
        {"size": [30, 40], "counts": [1200]},
        {"size": [30, 40], "counts": [1, 2, 3]},
        {"size": [30, 40], "counts": [-5, 1205]},
        {"size": [1 << 30, 1 << 30], "counts": "x"},
        {"size": [30, 40], "counts": "zzzz~~~~PPPP"},
        {"size": [30, 40], "counts": COMPRESSED["counts"][:-1]},
        {"size": [40, 40], "counts": COMPRESSED["counts"]},
        {"size": [30, 40], "counts": [1200]},
    ],
    ids=str,
)
def test_what_is_no_polygon_or_mask_with_an_area_has_none(segmentation):
    assert box_of_segmentation(segmentation) is None


def test_masks_give_the_boxes_that_their_pixels_have():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 30, 2)
        mask = np.asfortranarray(
            rng.random((height, width)) < rng.random() ** 3, np.uint8
        )
        ys, xs = np.nonzero(mask)
        encoded = {
            "size": [int(height), int(width)],
            "counts": masks.encode(mask)["counts"].decode(),
        }
        box = (
            [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
            if len(xs)
            else None
        )
        assert box_of_segmentation(encoded) == box
        assert mask_size(encoded) == (width, height)
