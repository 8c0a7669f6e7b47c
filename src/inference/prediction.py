"""The detections in one image."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..core.errors import ConfigError
from ..data.dataset.decoding import image_from_pil, load_image
from ..detection.drawing import draw_boxes


@dataclass(frozen=True)
class Prediction:
    """R detections in one image, sorted by descending score."""

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
    bit_depth: int | None = field(default=None, repr=False)
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
        if image is None:
            if self.source is None:
                raise ConfigError(
                    "this image did not come from a file; pass it to draw()"
                )
            image = load_image(
                Path(self.source), self.size, bit_depth=self.bit_depth
            )
        elif isinstance(image, Image.Image):
            image = image_from_pil(image)
        elif isinstance(image, np.ndarray):
            image = image_from_pil(Image.fromarray(image))
        drawn = draw_boxes(
            image,
            torch.from_numpy(self.boxes),
            torch.from_numpy(self.labels),
            dict(zip(self.labels.tolist(), self.names)),
            torch.from_numpy(self.scores),
        )
        return Image.fromarray(drawn.permute(1, 2, 0).numpy())
