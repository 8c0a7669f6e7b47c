"""Detect objects in images much larger than the input: in overlapping tiles and in the whole, then merge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core.errors import ConfigError
from .prediction import Prediction

CUT_MARGIN_PX = 2.0
"""Distance in pixels from an inner side of a tile within which an object is treated as cut."""

DUPLICATE_IOU = 0.5
"""Minimum IoU at which two boxes of a class from different views are treated as one object."""

CONTAINED_FRACTION = 0.5
"""Minimum fraction of a cut box inside an uncut one at which it is treated as a part of it."""


class Tiling(NamedTuple):
    """Size and overlap of the tiles of an image."""

    size: int
    """Side of a tile in pixels of the image."""
    overlap: float = 0.2
    """Overlap of neighbouring tiles as a fraction of the side; such objects are whole in some tile."""

    def windows(
        self, width: int, height: int
    ) -> list[tuple[int, int, int, int]]:
        """Return the windows (xyxy in pixels): the whole image, and tiles if it is larger than a tile.

        Raises:
            ConfigError: if the size is below 1, or the overlap is not from 0 to 0.9.

        Example:
            >>> Tiling(size=640, overlap=0.0).windows(1280, 640)
            [(0, 0, 1280, 640), (0, 0, 640, 640), (640, 0, 1280, 640)]
        """
        if self.size < 1 or not 0 <= self.overlap <= 0.9:
            raise ConfigError(
                f"the tile size is {self.size} pixels and the overlap is {self.overlap:g}, expected at least "
                "1 and from 0 to 0.9"
            )
        windows = [(0, 0, width, height)]
        columns = self._spans(width)
        rows = self._spans(height)
        if len(columns) * len(rows) > 1:
            for y0, y1 in rows:
                windows += [(x0, y0, x1, y1) for x0, x1 in columns]
        return windows

    def _spans(self, length: int) -> list[tuple[int, int]]:
        """Return the first and last edge of the tiles along one side of the image."""
        if length <= self.size:
            return [(0, length)]
        step = max(1, int(self.size * (1 - self.overlap)))
        last_start = length - self.size
        count = math.ceil(last_start / step) + 1
        starts = np.linspace(0, last_start, count).round().astype(int).tolist()
        return [(start, start + self.size) for start in starts]


def predict_tiled(
    image: Tensor,
    tiling: Tiling,
    predict: Callable[[Sequence[Tensor]], list[Prediction]],
    batch_size: int,
) -> Prediction:
    """Detect objects in an image and its tiles.

    Args:
        image: `[3, H, W]` uint8.
        tiling: size and overlap of the tiles.
        predict: function that detects objects in up to `batch_size` images.
        batch_size: number of tiles per batch.

    Example:
        >>> from src.inference import Detector
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> image = torch.zeros(3, 128, 256, dtype=torch.uint8)
        >>> found = predict_tiled(image, Tiling(size=64), detector.predict, batch_size=4)
        >>> found.size
        (256, 128)
    """
    size = (image.shape[2], image.shape[1])
    windows = tiling.windows(*size)
    found: list[Prediction] = []
    for start in range(0, len(windows), batch_size):
        batch = []
        for x0, y0, x1, y1 in windows[start : start + batch_size]:
            batch.append(image[:, y0:y1, x0:x1])
        found += predict(batch)
    if len(windows) == 1:
        return found[0]
    cut = []
    moved = []
    names: list[str] = []
    for part, window in zip(found, windows):
        corner = np.array(window[:2], np.float32)
        cut.append(_is_cut(part.boxes, window, size))
        moved.append(part.boxes + np.tile(corner, 2))
        names += part.names
    together = Prediction(
        boxes=np.concatenate(moved),
        scores=np.concatenate([part.scores for part in found]),
        labels=np.concatenate([part.labels for part in found]),
        category_ids=np.concatenate([part.category_ids for part in found]),
        names=names,
        size=size,
    )
    rows = _merged(
        torch.from_numpy(together.boxes),
        torch.from_numpy(together.scores),
        torch.from_numpy(together.labels),
        torch.from_numpy(np.concatenate(cut)),
    )
    return together.select(rows.numpy())


def _is_cut(
    boxes: np.ndarray, window: tuple[int, int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Return whether each box, in pixels of its window, touches a side that is not a side of the image."""
    x0, y0, x1, y1 = window
    image_width, image_height = size
    width = x1 - x0
    height = y1 - y0
    inner = np.array([x0 > 0, y0 > 0, x1 < image_width, y1 < image_height])
    near = np.column_stack(
        [
            boxes[:, 0] <= CUT_MARGIN_PX,
            boxes[:, 1] <= CUT_MARGIN_PX,
            boxes[:, 2] >= width - CUT_MARGIN_PX,
            boxes[:, 3] >= height - CUT_MARGIN_PX,
        ]
    )
    return (near & inner).any(1)


def _merged(
    boxes: Tensor, scores: Tensor, labels: Tensor, cut: Tensor
) -> Tensor:
    """Return the rows to keep, best first: each whole object once, and parts of other objects."""

    def without_duplicates(rows: Tensor) -> Tensor:
        from torchvision.ops import batched_nms  # here: its import is slow

        kept = batched_nms(
            boxes[rows], scores[rows], labels[rows], DUPLICATE_IOU
        )
        return rows[kept]

    whole = without_duplicates(torch.nonzero(~cut)[:, 0])
    parts = torch.nonzero(cut)[:, 0]
    low = torch.maximum(boxes[parts, None, :2], boxes[None, whole, :2])
    high = torch.minimum(boxes[parts, None, 2:], boxes[None, whole, 2:])
    overlap = (high - low).clamp(min=0).prod(2)
    sides = boxes[parts, 2:] - boxes[parts, :2]
    own = sides.clamp(min=0).prod(1, keepdim=True)
    is_same_class = labels[parts, None] == labels[None, whole]
    is_contained = is_same_class & (overlap >= CONTAINED_FRACTION * own)
    parts = without_duplicates(parts[~is_contained.any(1)])
    kept = torch.cat([whole, parts])
    return kept[scores[kept].argsort(descending=True, stable=True)]
