"""Boxes in another format are detected; boxes in COCO's format raise no suspicion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.dataset.box_formats import (
    COCO,
    FORMATS,
    BoxFormat,
    fitting,
    suspect,
    to_coco,
)

SIZES = np.array([[640.0, 480.0], [1280.0, 720.0], [400.0, 900.0]])


def natural(
    count: int, seed: int = 0, sizes: np.ndarray = SIZES
) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes xywh all over their images, some at the border, and the sizes of these."""
    rng = np.random.default_rng(seed)
    own = sizes[rng.integers(len(sizes), size=count)]
    side = own * rng.uniform(0.02, 0.9, (count, 2)) ** 2
    corner = (own - side) * rng.beta(0.8, 0.8, (count, 2))
    return np.concatenate([corner, side], 1).round(1), own


def written(
    xywh: np.ndarray, sizes: np.ndarray, given: BoxFormat
) -> np.ndarray:
    """Return boxes as a file of a format has them."""
    x, y, w, h = xywh.T
    boxes = {
        "xywh": [x, y, w, h],
        "xyxy": [x, y, x + w, y + h],
        "cxcywh": [x + w / 2, y + h / 2, w, h],
        "yxyx": [y, x, y + h, x + w],
        "yxhw": [y, x, h, w],
    }[given.order]
    width, height = sizes.T
    scale = {"pixels": None, "fraction": 1, "percent": 100, "permille": 1000}[
        given.unit
    ]
    if scale is None:
        return np.stack(boxes, 1)
    sides = (
        [height, width] * 2
        if given.order.startswith("y")
        else [width, height] * 2
    )
    return np.stack(
        [scale * value / side for value, side in zip(boxes, sides)], 1
    )


@pytest.mark.parametrize("given", FORMATS, ids=str)
def test_every_format_is_converted_to_the_same_boxes(given):
    boxes, sizes = natural(50)
    np.testing.assert_allclose(
        to_coco(written(boxes, sizes, given), sizes, given), boxes, atol=1e-9
    )


@pytest.mark.parametrize(
    "given", [given for given in FORMATS if given != COCO], ids=str
)
def test_every_other_format_is_suspected_and_the_right_one_is_among_the_likely(
    given,
):
    boxes, sizes = natural(300)
    suspicion = suspect(written(boxes, sizes, given), sizes)
    assert suspicion is not None
    if not given.order.startswith("y"):
        assert given in suspicion.likely


@pytest.mark.parametrize(
    "given",
    [given for given in FORMATS if given.order.startswith("y")],
    ids=str,
)
def test_y_first_is_named_where_no_other_order_fits(given):
    boxes, sizes = natural(300, sizes=np.array([[1500.0, 300.0]]))
    suspicion = suspect(written(boxes, sizes, given), sizes)
    assert suspicion is not None
    if given.unit == "pixels":
        assert given in suspicion.likely


@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 200),
    width=st.integers(8, 4000),
    height=st.integers(8, 4000),
    jitter=st.floats(0, 2),
)
@settings(max_examples=150, deadline=None)
def test_natural_boxes_are_never_suspected(seed, count, width, height, jitter):
    boxes, sizes = natural(
        count, seed, np.array([[float(width), float(height)]])
    )
    boxes = (
        boxes
        + np.random.default_rng(seed).uniform(-jitter, jitter, boxes.shape)
        * 0.2
    )
    boxes[:, 2:] = boxes[:, 2:].clip(
        2
    )  # a box within the first pixel may as well be in fractions
    inside = (boxes[:, :2] >= 0).all(1) & (
        boxes[:, :2] + boxes[:, 2:] <= sizes
    ).all(1)
    assert suspect(boxes[inside], sizes[inside]) is None


def test_boxes_of_small_objects_in_one_corner_are_not_treated_as_percentages():
    boxes, sizes = natural(300, sizes=np.array([[60.0, 60.0]]))
    assert suspect(boxes, np.full_like(sizes, 2000.0)) is None


def test_few_boxes_raise_no_false_suspicion():
    sizes = np.array([[640.0, 480.0]])
    assert suspect(np.array([[600.0, 20.0, 100.0, 60.0]]), sizes) is None
    assert suspect(np.array([[0.0, 0.0, 1.0, 1.0]]), sizes) is None


@pytest.mark.parametrize(
    ("boxes", "share"),
    [
        ([[0, 0, 10, 10]], 1.0),
        ([[0, 0, 0, 10]], 0.0),
        ([[-5, 0, 10, 10]], 0.0),
        ([[95, 95, 5.9, 5]], 1.0),
    ],
)
def test_a_box_fits_if_it_has_an_area_in_its_image(boxes, share):
    assert fitting(np.array(boxes, float), np.array([[100.0, 100.0]])) == share


def test_no_boxes_fit_nothing():
    assert fitting(np.zeros((0, 4)), np.zeros((0, 2))) == 0.0
    assert suspect(np.zeros((0, 4)), np.zeros((0, 2))) is None


def test_permille_in_large_images_is_named_whatever_the_order():
    boxes, sizes = natural(
        300, sizes=np.array([[1920.0, 1080.0], [1080.0, 1920.0]])
    )
    for order in ("xywh", "xyxy", "yxyx"):
        given = BoxFormat(order, "permille")
        assert given in suspect(written(boxes, sizes, given), sizes).likely


def test_one_small_image_does_not_hide_percentages_or_fractions():
    boxes, sizes = natural(100)
    with_small = sizes.copy()
    with_small[0] = 3, 3
    for unit in ("percent", "fraction"):
        assert (
            suspect(written(boxes, sizes, BoxFormat("xywh", unit)), with_small)
            is not None
        )


def test_fractions_with_a_few_other_boxes_are_named():
    boxes, sizes = natural(100)
    mixed = written(boxes, sizes, BoxFormat("cxcywh", "fraction"))
    mixed[0], mixed[1, 2] = [10, 10, 200, 100], 1.05
    found = suspect(mixed, sizes)
    assert (
        found.what
        == "98 of 100 boxes have numbers from 0 to 1, expected pixels"
    )
    assert found.likely[0] == BoxFormat("cxcywh", "fraction")


def test_one_bad_box_in_a_small_file_is_no_other_format():
    boxes, sizes = natural(12)
    boxes[3] = 2000, 2000, 50, 50
    assert suspect(boxes, sizes) is None


@pytest.mark.parametrize("overhang", [1, 8, 60])
def test_a_few_boxes_that_reach_out_of_their_image_are_not_treated_as_centres(
    overhang,
):
    boxes, sizes = natural(20, sizes=np.array([[640.0, 480.0]]))
    boxes = np.clip(boxes, [200, 150, 10, 10], [300, 200, 100, 100])
    boxes[:4] = 540 + overhang, 100, 100, 200
    assert suspect(boxes, sizes) is None


def test_boxes_of_a_fixed_object_in_a_corner_are_not_treated_as_percentages():
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        [rng.uniform(10, 15, (60, 2)), np.full(60, 80.0), np.full(60, 30.0)]
    )
    assert suspect(boxes, np.full((60, 2), 640.0)) is None
