"""The detections in one image, and their forms for other programs and libraries."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.counts import counted
from ..core.errors import ConfigError
from ..data.dataset.decoding import image_from_pil, load_image
from ..detection.drawing import draw_boxes
from ..runtime.optional import import_optional

if TYPE_CHECKING:
    import pandas
    import supervision

CLASSES_IN_REPR = 8
"""Maximum number of classes that the representation of a prediction names."""


class Detection(NamedTuple):
    """One detected object."""

    box: tuple[float, float, float, float]
    """xyxy in pixels of the image."""
    score: float
    """0..1."""
    label: int
    """Row of the class head."""
    name: str
    """Name of the class."""


@dataclass(frozen=True, repr=False)
class Prediction:
    """R detections in one image, sorted by descending score.

    Iterating gives one `Detection` after the other; `len` is R.

    Example:
        >>> boxes = np.array([[10, 20, 40, 60], [0, 0, 5, 5]], np.float32)
        >>> labels = np.array([0, 1])
        >>> found = Prediction(boxes, np.array([0.9, 0.5]), labels, labels + 1, ["cat", "dog"], (64, 48))
        >>> found
        2 detections: 1 cat, 1 dog (64 x 48)
        >>> for box, score, label, name in found:
        ...     print(name, score, box)
        cat 0.9 (10.0, 20.0, 40.0, 60.0)
        dog 0.5 (0.0, 0.0, 5.0, 5.0)
    """

    boxes: np.ndarray
    """`[R, 4]` float32, xyxy in pixels of the image; boxes may extend slightly beyond it, see `clipped`."""
    scores: np.ndarray
    """`[R]` float32, 0..1."""
    labels: np.ndarray
    """`[R]` int64, rows of the class head."""
    category_ids: np.ndarray
    """`[R]` int64, category ids of the training data's annotation file."""
    names: list[str]
    """R class names."""
    size: tuple[int, int]
    """(width, height) of the image."""
    source: str | None = None
    """Path of the image file; None if the image did not come from a file."""
    bit_depth: int | None = None
    """Bits of the samples with which a 16-bit file was read; None means 16."""
    error: str | None = None
    """Why there is no prediction for this image, with `errors="skip"`; None if there is one."""

    @classmethod
    def failed(
        cls,
        error: str,
        size: tuple[int, int] = (0, 0),
        source: str | None = None,
    ) -> Prediction:
        """Return an empty prediction with the reason why the image has none.

        Example:
            >>> found = Prediction.failed("image a.jpg is empty (0 bytes)", source="a.jpg")
            >>> len(found), found.error
            (0, 'image a.jpg is empty (0 bytes)')
        """
        return cls(
            boxes=np.zeros((0, 4), np.float32),
            scores=np.zeros(0, np.float32),
            labels=np.zeros(0, np.int64),
            category_ids=np.zeros(0, np.int64),
            names=[],
            size=size,
            source=source,
            error=error,
        )

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(
            self.boxes.tolist(),
            self.scores.tolist(),
            self.labels.tolist(),
            self.names,
        )
        for box, score, label, name in rows:
            yield Detection(tuple(box), score, label, name)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"no prediction: {self.error}"
        size = f"({self.size[0]} x {self.size[1]})"
        if not len(self):
            return f"no detections {size}"
        names = Counter(self.names).most_common()
        parts = [f"{count} {name}" for name, count in names[:CLASSES_IN_REPR]]
        if len(names) > CLASSES_IN_REPR:
            others = len(names) - CLASSES_IN_REPR
            parts.append(counted(others, "more class", "more classes"))
        return f"{counted(len(self), 'detection')}: {', '.join(parts)} {size}"

    def select(self, rows: np.ndarray) -> Prediction:
        """Return the detections selected by a boolean mask or by row numbers, in their order.

        Example:
            >>> boxes = np.array([[10, 20, 40, 60], [0, 0, 5, 5]], np.float32)
            >>> scores = np.array([0.9, 0.2], np.float32)
            >>> labels = np.array([0, 1])
            >>> found = Prediction(boxes, scores, labels, labels + 1, ["cat", "dog"], (64, 64))
            >>> found.select(found.scores >= 0.5).names
            ['cat']
        """
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            category_ids=self.category_ids[rows],
            names=np.array(self.names, object)[rows].tolist(),
        )

    def clipped(self) -> Prediction:
        """Return the same detections with boxes clipped to the image, for cropping."""
        limit = np.array([*self.size, *self.size], np.float32)
        return replace(self, boxes=self.boxes.clip(0, limit))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return the detections as entries of a COCO result file, with `bbox` as xywh in pixels.

        Example:
            >>> boxes = np.array([[10, 20, 40, 60]], np.float32)
            >>> found = Prediction(boxes, np.array([0.5]), np.array([0]), np.array([1]), ["cat"], (64, 64))
            >>> found.to_coco(image_id=7)
            [{'image_id': 7, 'category_id': 1, 'bbox': [10.0, 20.0, 30.0, 40.0], 'score': 0.5}]
        """
        corner = self.boxes[:, :2]
        size = self.boxes[:, 2:] - corner
        xywh = np.concatenate([corner, size], 1).astype(float).tolist()
        categories = self.category_ids.tolist()
        entries = []
        for category, box, score in zip(categories, xywh, self.scores.tolist()):
            entry = {
                "image_id": image_id,
                "category_id": category,
                "bbox": [round(value, 3) for value in box],
                "score": round(score, 6),
            }
            entries.append(entry)
        return entries

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as plain values, which JSON can hold.

        Boxes are xyxy in pixels, rounded to 3 digits, and scores are rounded to 6. `error` is left out if
        there is none.

        Example:
            >>> boxes = np.array([[10, 20, 40, 60]], np.float32)
            >>> found = Prediction(boxes, np.array([0.5]), np.array([0]), np.array([1]), ["cat"], (64, 48))
            >>> found.to_dict()["detections"]
            [{'box': [10.0, 20.0, 40.0, 60.0], 'score': 0.5, 'label': 0, 'category_id': 1, 'name': 'cat'}]
            >>> found.to_dict()["width"], found.to_dict()["height"]
            (64, 48)
        """
        detections = []
        for found, category in zip(self, self.category_ids.tolist()):
            detection = {
                "box": [round(value, 3) for value in found.box],
                "score": round(found.score, 6),
                "label": found.label,
                "category_id": category,
                "name": found.name,
            }
            detections.append(detection)
        content: dict[str, Any] = {
            "source": self.source,
            "width": self.size[0],
            "height": self.size[1],
            "detections": detections,
        }
        if self.error is not None:
            content["error"] = self.error
        return content

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict` as JSON text.

        Args:
            indent: spaces for each level; None writes one line.

        Example:
            >>> boxes = np.array([[10, 20, 40, 60]], np.float32)
            >>> found = Prediction(boxes, np.array([0.5]), np.array([0]), np.array([1]), ["cat"], (64, 48))
            >>> found.to_json()[:47]
            '{"source": null, "width": 64, "height": 48, "de'
        """
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a table with one row for each detection.

        Its columns are `x_min`, `y_min`, `x_max` and `y_max` (pixels), `score`, `label`, `category_id` and
        `name`.

        Raises:
            ConfigError: if pandas is not installed.
        """
        pd = import_optional("pandas")
        corners = ("x_min", "y_min", "x_max", "y_max")
        columns: dict[str, Any] = dict(zip(corners, self.boxes.T))
        columns["score"] = self.scores
        columns["label"] = self.labels
        columns["category_id"] = self.category_ids
        columns["name"] = np.array(self.names, object)
        return pd.DataFrame(columns)

    def to_supervision(self) -> supervision.Detections:
        """Return the detections for supervision, which tracks, counts and draws objects.

        `class_id` holds the labels, and `data["class_name"]` the names.

        Raises:
            ConfigError: if supervision is not installed.
        """
        sv = import_optional("supervision")
        return sv.Detections(
            xyxy=self.boxes.astype(np.float32),
            confidence=self.scores.astype(np.float32),
            class_id=self.labels.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def to_yolo(self, *, scores: bool = False) -> str:
        """Return the detections as the text of a YOLO label file, one line each: `label cx cy w h`.

        Boxes are clipped to the image, and their values are fractions of its width and height. Boxes without
        area are left out.

        Args:
            scores: append the score to each line, as in YOLO's prediction files.

        Example:
            >>> boxes = np.array([[16, 12, 48, 36]], np.float32)
            >>> found = Prediction(boxes, np.array([0.5]), np.array([3]), np.array([4]), ["cat"], (64, 48))
            >>> print(found.to_yolo(), end="")
            3 0.500000 0.500000 0.500000 0.500000
        """
        width, height = self.size
        lines = []
        for (x0, y0, x1, y1), score, label, _ in self.clipped():
            if x1 <= x0 or y1 <= y0:
                continue
            values = [
                (x0 + x1) / 2 / width,
                (y0 + y1) / 2 / height,
                (x1 - x0) / width,
                (y1 - y0) / height,
            ]
            if scores:
                values.append(score)
            numbers = " ".join(f"{value:.6f}" for value in values)
            lines.append(f"{label} {numbers}\n")
        return "".join(lines)

    def crops(
        self, image: Tensor | np.ndarray | Image.Image | None = None
    ) -> list[Image.Image]:
        """Cut every detection out of the image.

        Boxes are clipped to the image and extended to whole pixels. A crop has at least one pixel.

        Args:
            image: as for `draw`.

        Returns:
            R pictures, in the order of the detections.

        Raises:
            ConfigError: if the image did not come from a file, or has another size.
            ImageError: if the file cannot be read, or has another size now.

        Example:
            >>> boxes = np.array([[10, 20, 40, 60], [-5, 0, 8.5, 5]], np.float32)
            >>> labels = np.array([0, 1])
            >>> found = Prediction(boxes, np.array([0.9, 0.5]), labels, labels + 1, ["cat", "dog"], (64, 64))
            >>> [crop.size for crop in found.crops(np.zeros((64, 64, 3), np.uint8))]
            [(30, 40), (9, 5)]
        """
        pixels = self._pixels(image)
        height, width = pixels.shape[1:]
        if (width, height) != self.size:
            raise ConfigError(
                f"the image is {width} x {height} pixels, but the prediction is for one of {self.size[0]} x "
                f"{self.size[1]}; pass the image that was predicted"
            )
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        crops = []
        for box in self.boxes:
            left, right = _pixel_range(box[0], box[2], width)
            upper, lower = _pixel_range(box[1], box[3], height)
            crops.append(picture.crop((left, upper, right, lower)))
        return crops

    def draw(
        self, image: Tensor | np.ndarray | Image.Image | None = None
    ) -> Image.Image:
        """Draw boxes, names and scores on the image.

        Args:
            image: `[3, H, W]` tensor or `[H, W, 3]` array, uint8, RGB, or a PIL image; None reads the file
                that the image came from.

        Raises:
            ConfigError: if the image did not come from a file.
            ImageError: if the file cannot be read, or has another size now.

        Example:
            >>> boxes = np.array([[10, 20, 40, 60]], np.float32)
            >>> found = Prediction(boxes, np.array([0.5]), np.array([0]), np.array([1]), ["cat"], (64, 64))
            >>> found.draw(np.zeros((480, 640, 3), np.uint8)).size
            (640, 480)
        """
        drawn = draw_boxes(
            self._pixels(image),
            torch.from_numpy(self.boxes),
            torch.from_numpy(self.labels),
            dict(zip(self.labels.tolist(), self.names)),
            torch.from_numpy(self.scores),
        )
        return Image.fromarray(drawn.permute(1, 2, 0).numpy())

    def _pixels(
        self, image: Tensor | np.ndarray | Image.Image | None
    ) -> Tensor:
        """Return the image of this prediction as `[3, H, W]` uint8, RGB; None reads its file."""
        if image is None:
            if self.source is None:
                raise ConfigError(
                    "this image did not come from a file; pass it as an argument"
                )
            return load_image(
                Path(self.source), self.size, bit_depth=self.bit_depth
            )
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        return image if isinstance(image, Tensor) else image_from_pil(image)


def _pixel_range(low: float, high: float, size: int) -> tuple[int, int]:
    """Return the pixels that an interval touches within `size` pixels, at least one of them."""
    start = min(max(math.floor(low), 0), size - 1)
    end = min(max(math.ceil(high), start + 1), size)
    return start, end
