"""Places for the labels of boxes: inside the picture, and apart from each other where possible."""

from __future__ import annotations

import numpy as np


def place_labels(
    boxes: np.ndarray, sizes: np.ndarray, width: int, height: int
) -> np.ndarray:
    """Choose a place for each label, in the order of the boxes.

    Each label takes the first of its places that is free: above the box, inside at the top, below it, beside
    it, inside at the bottom. If none is free, it takes the one that covers the fewest pixels of other labels.

    Example:
        >>> boxes = np.array([[10, 40, 60, 90], [10, 42, 60, 90]])
        >>> place_labels(boxes, np.array([[30, 12], [30, 12]]), width=100, height=100).tolist()
        [[10, 28], [30, 30]]

    Args:
        boxes: `[N, 4]` int, xyxy in pixels.
        sizes: `[N, 2]` int, width and height of the labels in pixels.
        width: width of the picture in pixels.
        height: height of the picture in pixels.

    Returns:
        `[N, 2]` int: x and y of the upper left corners.
    """
    placed = np.zeros((len(boxes), 4), np.int64)
    for number, (box, size) in enumerate(zip(boxes, sizes)):
        corners = _places(box, size)
        limit = np.maximum([width, height] - size, 0)
        corners = np.clip(corners, 0, limit)
        candidates = np.concatenate([corners, corners + size], 1)
        covered = _common_areas(candidates, placed[:number])
        placed[number] = candidates[covered.argmin()]
    return placed[:, :2]


def _places(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the possible upper left corners of a label, `[P, 2]`, best first."""
    left, top, right, bottom = box.tolist()
    width, height = size.tolist()
    return np.array(
        [
            (left, top - height),
            (right - width, top - height),
            (left, top),
            (right - width, top),
            (left, bottom),
            (right - width, bottom),
            (right, top),
            (left - width, top),
            (left, bottom - height),
            (right - width, bottom - height),
        ]
    )


def _common_areas(candidates: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Return the area that each candidate `[P, 4]` shares with the placed labels `[K, 4]`: `[P]`."""
    low = np.maximum(candidates[:, None, :2], placed[None, :, :2])
    high = np.minimum(candidates[:, None, 2:], placed[None, :, 2:])
    return (high - low).clip(0).prod(2).sum(1)
