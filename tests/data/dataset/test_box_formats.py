"""Which format boxes have: signs of another one are seen, and natural boxes are left in peace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.data.dataset.box_formats import COCO, FORMATS, BoxFormat, fitting, suspect, to_coco

SIZES = np.array([[640.0, 480.0], [1280.0, 720.0], [400.0, 900.0]])


def natural(count: int, seed: int = 0, sizes: np.ndarray = SIZES) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes xywh all over their images, some at the border, and the sizes of these."""
    rng = np.random.default_rng(seed)
    own = sizes[rng.integers(len(sizes), size=count)]
    side = own * rng.uniform(0.02, 0.9, (count, 2)) ** 2
    corner = (own - side) * rng.beta(0.8, 0.8, (count, 2))
    return np.concatenate([corner, side], 1).round(1), own


def written(xywh: np.ndarray, sizes: np.ndarray, given: BoxFormat) -> np.ndarray:
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
    scale = {"pixels": None, "fraction": 1, "percent": 100, "permille": 1000}[given.unit]
    if scale is None:
        return np.stack(boxes, 1)
    sides = [height, width] * 2 if given.order.startswith("y") else [width, height] * 2
    return np.stack([scale * value / side for value, side in zip(boxes, sides)], 1)


def found(boxes: np.ndarray, sizes: np.ndarray):
    """Return what `suspect` finds, given what reading would count."""
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    inside = np.concatenate([low, high], 1).clip(0, np.tile(sizes, 2))
    outside = (high > low).all(1) & (inside[:, 2:] <= inside[:, :2]).any(1)
    beyond = (np.abs(inside - np.concatenate([low, high], 1)) > 0.5).any(1) & ~outside
    return suspect(boxes, sizes, int(outside.sum()), int(beyond.sum()))


@pytest.mark.parametrize("given", FORMATS, ids=str)
def test_every_format_is_converted_to_the_same_boxes(given):
    boxes, sizes = natural(50)
    np.testing.assert_allclose(to_coco(written(boxes, sizes, given), sizes, given), boxes, atol=1e-9)


@pytest.mark.parametrize("given", [given for given in FORMATS if given != COCO], ids=str)
def test_every_other_format_is_suspected_and_the_right_one_is_among_the_likely(given):
    boxes, sizes = natural(300)
    suspicion = found(written(boxes, sizes, given), sizes)
    assert suspicion is not None
    if not given.order.startswith("y"):
        assert given in suspicion.likely


@pytest.mark.parametrize("given", [given for given in FORMATS if given.order.startswith("y")], ids=str)
def test_y_first_is_named_where_no_other_order_fits(given):
    boxes, sizes = natural(300, sizes=np.array([[1500.0, 300.0]]))
    suspicion = found(written(boxes, sizes, given), sizes)
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
    boxes, sizes = natural(count, seed, np.array([[float(width), float(height)]]))
    boxes = boxes + np.random.default_rng(seed).uniform(-jitter, jitter, boxes.shape) * 0.2
    boxes[:, 2:] = boxes[:, 2:].clip(1)
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, :2] + boxes[:, 2:] <= sizes).all(1)
    assert found(boxes[inside], sizes[inside]) is None


def test_boxes_of_small_objects_in_one_corner_are_not_taken_for_percentages():
    boxes, sizes = natural(300, sizes=np.array([[60.0, 60.0]]))
    assert found(boxes, np.full_like(sizes, 2000.0)) is None


def test_few_boxes_raise_no_suspicion_by_chance():
    sizes = np.array([[640.0, 480.0]])
    assert found(np.array([[600.0, 20.0, 100.0, 60.0]]), sizes) is None
    assert found(np.array([[0.0, 0.0, 1.0, 1.0]]), sizes) is None


@pytest.mark.parametrize(
    ("boxes", "share"),
    [([[0, 0, 10, 10]], 1.0), ([[0, 0, 0, 10]], 0.0), ([[-5, 0, 10, 10]], 0.0), ([[95, 95, 5.9, 5]], 1.0)],
)
def test_a_box_fits_if_it_has_an_area_in_its_image(boxes, share):
    assert fitting(np.array(boxes, float), np.array([[100.0, 100.0]])) == share


def test_no_boxes_fit_nothing():
    assert fitting(np.zeros((0, 4)), np.zeros((0, 2))) == 0.0
    assert suspect(np.zeros((0, 4)), np.zeros((0, 2)), 0, 0) is None
