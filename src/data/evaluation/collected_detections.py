"""The detections of an evaluation in a few arrays, by image id."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...core.contracts import Detections


class DetectionArrays(NamedTuple):
    """N detections of I images, image after image."""

    image_ids: np.ndarray
    """`[I]` int64."""
    counts: np.ndarray
    """`[I]` int64: number of detections of each image."""
    values: np.ndarray
    """`[N, 5]`: x1, y1, x2, y2 in pixels, score; float32, or float64 if a box or a score was."""
    categories: np.ndarray
    """`[N]` int64: category ids."""

    def of_images(self, wanted: np.ndarray) -> DetectionArrays:
        """Return the detections of some images; wanted: `[I]` bool."""
        rows = np.repeat(wanted, self.counts)
        return DetectionArrays(
            self.image_ids[wanted],
            self.counts[wanted],
            self.values[rows],
            self.categories[rows],
        )

    @property
    def boxes_xywh(self) -> np.ndarray:
        """Boxes, `[N, 4]` float64: x, y, width, height in pixels."""
        corners = self.values[:, :4].astype(np.float64)
        corners[:, 2:] -= corners[:, :2]
        return corners

    @property
    def scores(self) -> np.ndarray:
        """Scores, `[N]` float64."""
        return self.values[:, 4].astype(np.float64)


class CollectedDetections(Mapping[int, np.ndarray]):
    """Detections by image id; a value has `[R, 6]` float64: x, y, w, h, score, category.

    A batch is kept as arrays of all its images, without an object for each detection.
    """

    def __init__(self) -> None:
        self._parts: list[DetectionArrays] = []
        self._places: dict[int, tuple[int, int, int]] = {}
        """By image id: number of the part, and its rows from and to."""

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __getitem__(self, image_id: int) -> np.ndarray:
        number, start, end = self._places[image_id]
        part = self._parts[number]
        own = DetectionArrays(
            np.array([image_id]),
            np.array([end - start]),
            part.values[start:end],
            part.categories[start:end],
        )
        return np.column_stack([own.boxes_xywh, own.scores, own.categories])

    def add_predictions(self, predictions: Mapping[int, Detections]) -> None:
        """Add the detections of some images; an image that was added before is skipped.

        All boxes, scores and labels are copied to the host together: one host-device synchronization.
        """
        new = [i for i in predictions if i not in self._places]
        if new:
            self.add(_on_host(new, [predictions[i] for i in new]))

    def add(self, arrays: DetectionArrays) -> None:
        """Add the detections of some images; an image that was added before is skipped."""
        known = [i in self._places for i in arrays.image_ids.tolist()]
        if any(known):
            arrays = arrays.of_images(~np.array(known))
        ends = np.cumsum(arrays.counts)
        starts = ends - arrays.counts
        number = len(self._parts)
        rows = zip(arrays.image_ids.tolist(), starts.tolist(), ends.tolist())
        for image_id, start, end in rows:
            self._places[image_id] = (number, start, end)
        self._parts.append(arrays)

    def arrays(self) -> DetectionArrays:
        """Return all detections."""
        if len(self._parts) != 1:
            # joined once and kept instead of the parts, so that the memory is not needed twice
            joined = _join(self._parts)
            self._parts = []
            self._places = {}
            self.add(joined)
        return self._parts[0]


def _on_host(
    image_ids: Sequence[int], found: Sequence[Detections]
) -> DetectionArrays:
    """Copy the detections of some images to the host."""
    counts = [len(one["scores"]) for one in found]
    columns = []
    is_double = False
    for name in ("boxes", "scores", "labels"):
        values: list[Tensor] = [one[name] for one in found]
        is_double |= any(one.dtype == torch.float64 for one in values)
        # float64 holds float32 and ids below 2**53 without a loss
        joined = torch.cat(values).double()
        columns.append(joined if joined.ndim == 2 else joined[:, None])
    rows = torch.cat(columns, 1).cpu().numpy()
    values_type = np.float64 if is_double else np.float32
    return DetectionArrays(
        np.array(image_ids, np.int64),
        np.array(counts, np.int64),
        rows[:, :5].astype(values_type),
        rows[:, 5].astype(np.int64),
    )


def _join(parts: Sequence[DetectionArrays]) -> DetectionArrays:
    empty = DetectionArrays(
        np.empty(0, np.int64),
        np.empty(0, np.int64),
        np.empty((0, 5), np.float32),
        np.empty(0, np.int64),
    )
    return DetectionArrays(*map(np.concatenate, zip(empty, *parts)))
