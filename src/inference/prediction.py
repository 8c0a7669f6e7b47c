"""Objects found in one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    """Objects found in one image, best first; R of them."""

    boxes: np.ndarray
    """`[R, 4]` float32, xyxy in pixels of the image; sides may lie a little outside of it, see `clipped`."""
    scores: np.ndarray
    """`[R]` float32, 0..1."""
    labels: np.ndarray
    """`[R]` int64, rows of the class head."""
    category_ids: np.ndarray
    """`[R]` int64, the ids that the training data's annotation file gives the classes."""
    names: list[str]
    """R class names."""
    size: tuple[int, int]
    """(width, height) of the image."""
    source: str | None = None
    """The image's file, if it came from one."""

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: np.ndarray) -> Prediction:
        """Return the objects under a mask, or in the order of row numbers."""
        names = np.array(self.names, object)[rows].tolist()
        return replace(
            self,
            names=names,
            **{key: getattr(self, key)[rows] for key in ("boxes", "scores", "labels", "category_ids")},
        )

    def clipped(self) -> Prediction:
        """Return the same with boxes cut at the image's border, for cropping."""
        return replace(self, boxes=self.boxes.clip(0, np.tile(np.array(self.size, np.float32), 2)))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return entries of a COCO result file: `image_id`, `category_id`, `bbox` (xywh) and `score`."""
        xywh = np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], 1).astype(float)
        return [
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [round(v, 3) for v in box],
                "score": round(score, 6),
            }
            for category, box, score in zip(self.category_ids.tolist(), xywh.tolist(), self.scores.tolist())
        ]

    def draw(self, image: Tensor | np.ndarray | Image.Image | None = None) -> Image.Image:
        """Return a picture with boxes, names and scores.

        Args:
            image: `[3, H, W]` tensor or `[H, W, 3]` array, uint8, RGB, or a PIL image; None reads the file
                that the image came from.

        Raises:
            ConfigError: if the image did not come from a file.
        """
        if image is None:
            if self.source is None:
                raise ConfigError("this image came from no file; give it to draw()")
            image = load_image(Path(self.source))
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
