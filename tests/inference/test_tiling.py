"""Large images are cut into overlapping tiles, and what is found in them is merged."""

import numpy as np
import pytest
import torch

from src.core import ConfigError
from src.inference import Prediction, Tiling
from src.inference.tiling import _is_cut, predict_tiled


def found(
    size: tuple[int, int], *rows: tuple[float, float, float, float, float, int]
) -> Prediction:
    """Return a prediction of (x0, y0, x1, y1, score, label) rows."""
    rows = np.array(rows, np.float32).reshape(-1, 6)
    labels = rows[:, 5].astype(np.int64)
    return Prediction(
        rows[:, :4],
        rows[:, 4],
        labels,
        labels + 10,
        [f"class {i}" for i in labels],
        size,
    )


def seen_in(
    window: tuple[int, int, int, int],
    objects: list[tuple[float, float, float, float, float, int]],
) -> Prediction:
    """Return what a perfect detector sees of objects in a window: its own part of each."""
    x0, y0, x1, y1 = window
    rows = [
        (
            max(a, x0) - x0,
            max(b, y0) - y0,
            min(c, x1) - x0,
            min(d, y1) - y0,
            *rest,
        )
        for a, b, c, d, *rest in objects
    ]
    seen = [row for row in rows if row[2] - row[0] > 1 and row[3] - row[1] > 1]
    return found((x1 - x0, y1 - y0), *seen)


def seen_through(
    objects: list[tuple[float, float, float, float, float, int]],
    tiling: Tiling,
    size: tuple[int, int],
) -> Prediction:
    """Merge what a perfect detector sees of objects, each view its own part of them."""
    windows = iter(tiling.windows(*size))
    return predict_tiled(
        torch.zeros(3, size[1], size[0], dtype=torch.uint8),
        tiling,
        lambda images: [seen_in(next(windows), objects) for _ in images],
        batch_size=3,
    )


@pytest.mark.parametrize(
    "size", [(100, 100), (1000, 500), (101, 377), (64, 1000)]
)
@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
def test_tiles_cover_the_image_and_overlap_as_asked(size, overlap):
    whole, *tiles = Tiling(100, overlap).windows(*size)
    assert whole == (0, 0, *size)
    covered = np.zeros(size[::-1], bool)
    for x0, y0, x1, y1 in tiles:
        covered[y0:y1, x0:x1] = True
        assert x1 - x0 == min(100, size[0]) and y1 - y0 == min(100, size[1])
    assert covered.all() or not tiles and max(size) <= 100
    starts = sorted({tile[0] for tile in tiles})
    assert all(
        b - a <= 100 * (1 - overlap) + 1 for a, b in zip(starts, starts[1:])
    )


def test_a_small_image_is_looked_at_once():
    assert Tiling(100).windows(80, 100) == [(0, 0, 80, 100)]


def test_an_object_on_the_border_of_tiles_comes_out_once_and_whole():
    merged = seen_through(
        [(90, 90, 130, 130, 0.8, 0)], Tiling(100, 0.0), (200, 200)
    )
    assert merged.boxes.tolist() == [
        [90, 90, 130, 130]
    ] and merged.scores.tolist() == pytest.approx([0.8])


def test_neighbours_of_another_class_stay():
    merged = seen_through(
        [
            (10, 10, 40, 40, 0.9, 0),
            (12, 12, 40, 40, 0.8, 1),
            (150, 150, 190, 190, 0.7, 0),
        ],
        Tiling(100),
        (200, 200),
    )
    assert (
        merged.labels.tolist() == [0, 1, 0]
        and merged.category_ids.tolist() == [10, 11, 10]
        and merged.names[1] == "class 1"
    )


def test_a_small_object_within_a_large_one_of_its_class_stays():
    merged = seen_through(
        [(0, 0, 200, 200, 0.9, 0), (20, 20, 60, 60, 0.8, 0)],
        Tiling(100),
        (200, 200),
    )
    assert sorted(merged.boxes.tolist()) == [[0, 0, 200, 200], [20, 20, 60, 60]]


@pytest.mark.parametrize(
    "tiling", [Tiling(0), Tiling(100, 1.0), Tiling(100, -0.1)]
)
def test_invalid_tiles_are_refused(tiling):
    with pytest.raises(
        ConfigError, match="expected at least 1 and from 0 to 0.9"
    ):
        tiling.windows(500, 500)


@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_width_and_height_of_tiles_that_are_not_square_are_not_confused(tall):
    """The whole image shows only the large object, its tiles only the small ones within it."""
    size, large = (250, 60), (0, 0, 250, 60, 0.9, 0)
    small = [
        (60, 10, 80, 30, 0.8, 0),  # right of a tile's height, left of its width
        (80, 40, 130, 50, 0.7, 0),  # cut in one tile, whole in the next one
        (20, 45, 40, 60, 0.6, 0),  # at the lower side of the image, not cut
        (230, 0, 250, 12, 0.5, 0),  # in a corner of the image
    ]
    if tall:
        size = size[::-1]
        large, *small = [
            (b, a, d, c, s, i) for a, b, c, d, s, i in (large, *small)
        ]
    tiling = Tiling(100, 0.2)
    windows, shapes = tiling.windows(*size), []
    whole = found(size, large)
    alone = [seen_in(window, small) for window in windows[1:]]

    def predict(images):
        shapes.extend(image.shape for image in images)
        return [whole, *alone][len(shapes) - len(images) : len(shapes)]

    image = torch.zeros(3, size[1], size[0], dtype=torch.uint8)
    merged = predict_tiled(image, tiling, predict, batch_size=2)
    assert shapes == [(3, y1 - y0, x1 - x0) for x0, y0, x1, y1 in windows]
    assert merged.size == size
    assert sorted(merged.boxes.tolist()) == sorted(
        list(o[:4]) for o in (large, *small)
    )


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((2, 20, 50, 40), [True, False]),
        ((3, 20, 97, 57), [False, False]),
        ((20, 2, 50, 40), [False, False]),
        ((20, 20, 98, 40), [True, False]),
        ((20, 20, 50, 58), [False, True]),
    ],
)
def test_a_box_within_two_pixels_of_an_inner_side_is_cut(box, cut):
    """Two tiles of 100 x 60 pixels: one between others in a row, and the uppermost of a column."""
    boxes = np.array([box], np.float32)
    middle = _is_cut(boxes, (50, 0, 150, 60), (200, 60))
    corner = _is_cut(boxes, (0, 0, 100, 60), (100, 200))
    assert [middle[0], corner[0]] == cut
