"""Match the detections of one image with its objects."""

from __future__ import annotations

import numpy as np

MATCH_IOU = 0.5
"""Minimum IoU of a match."""

MISSED = -1
"""Value instead of the row of an object: no object was found."""

CROWD = -2
"""Value instead of the row of an object: a crowd region was found, which is neither right nor wrong."""


def match_image(
    rows: np.ndarray,
    objects: np.ndarray | None,
    *,
    same_category: bool = True,
) -> np.ndarray:
    """Return for each detection of an image the row of its object, or `MISSED` or `CROWD`.

    The detections must be sorted, with the highest score first.
    """
    found = np.full(len(rows), MISSED, np.int64)
    if objects is None or not len(rows):
        return found
    crowd = objects[:, 5] > 0
    overlap = iou_xywh(rows[:, :4], objects[:, :4], crowd)
    if same_category:
        overlap *= rows[:, 5, None] == objects[None, :, 4]
    overlapping = (overlap >= MATCH_IOU).any(
        1
    )  # most detections do not overlap any
    for row in np.flatnonzero(overlapping):
        best = np.where(crowd, 0, overlap[row]).argmax()
        if not crowd[best] and overlap[row, best] >= MATCH_IOU:
            found[row] = best
            overlap[:, best] = 0
        elif (overlap[row, crowd] >= MATCH_IOU).any():
            found[row] = CROWD
    return found


def iou_xywh(
    one: np.ndarray,
    other: np.ndarray,
    crowd: np.ndarray | None = None,
) -> np.ndarray:
    """Return IoUs `[N, M]` of xywh boxes.

    For a crowd region it is the fraction of the first box that lies in it, as in COCO.
    """
    one_starts = one[:, :2]
    other_starts = other[:, :2]
    one_ends = one_starts + one[:, 2:]
    other_ends = other_starts + other[:, 2:]
    low = np.maximum(one_starts[:, None], other_starts[None])
    high = np.minimum(one_ends[:, None], other_ends[None])
    common = (high - low).clip(0).prod(2)
    one_areas = one[:, 2:].prod(1)[:, None]
    other_areas = other[:, 2:].prod(1)[None]
    whole = one_areas + other_areas - common
    if crowd is not None:
        whole = np.where(crowd, one_areas, whole)
    return common / np.maximum(whole, 1e-9)
