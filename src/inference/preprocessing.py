"""Preprocess images for a model with the transforms of the validation data.

Checkpoints and exported models contain these transforms. Training evaluates with the same classes and
arithmetic (`data/transforms/sample.py`), so all tools give the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.build import create
from ..core.errors import ConfigError
from ..core.yaml_config import YAMLConfig
from ..data.dataset.decoding import MAX_PIXELS
from ..data.transforms.compose import Compose
from ..data.transforms.sample import Sample

DETERMINISTIC_TRANSFORMS = (
    "Resize",
    "ConvertPILImage",
    "Normalize",
    "ConvertBoxes",
    "SanitizeBoundingBoxes",
    "EmptyTransform",
)
"""Transforms without randomness that map the whole image to the whole input, so boxes only need scaling."""


class Preprocessing:
    """Resize RGB images to the input size, without keeping their aspect ratio, and scale their values.

    Example:
        >>> preprocessing = Preprocessing([{"type": "Resize", "size": [32, 48]}, {"type": "ConvertPILImage"}])
        >>> images, sizes = preprocessing([torch.zeros(3, 100, 200, dtype=torch.uint8)])
        >>> images.shape, sizes.tolist()
        (torch.Size([1, 3, 32, 48]), [[200, 100]])
    """

    def __init__(self, ops: Sequence[Mapping[str, Any]]) -> None:
        """Build the transforms.

        Args:
            ops: `{type: name, argument: value ...}` in order, as in `val_dataloader.dataset.transforms.ops`.

        Raises:
            ConfigError: if a transform is random or crops or pads the image, there is no Resize, or its size
                is larger than images can be.
        """
        self.ops = [dict(op) for op in ops]
        types = [op.get("type") for op in self.ops]
        foreign = [
            str(kind) for kind in types if kind not in DETERMINISTIC_TRANSFORMS
        ]
        if foreign:
            raise ConfigError(
                f"val_dataloader.dataset.transforms has {', '.join(foreign)}, but single images are prepared "
                f"only with {', '.join(DETERMINISTIC_TRANSFORMS)}"
            )
        self._transforms = Compose([create(op) for op in self.ops])
        size = self._transforms.output_size
        if size is None:
            raise ConfigError(
                "val_dataloader.dataset.transforms has no Resize, so the input size is not known"
            )
        if size[0] * size[1] > MAX_PIXELS:
            raise ConfigError(
                f"images would be resized to {size[0]} x {size[1]} (height x width), expected at most "
                f"{MAX_PIXELS} pixels"
            )
        self._input_size = size

    @classmethod
    def from_config(cls, cfg: YAMLConfig) -> Preprocessing:
        """Build the transforms of the validation data."""
        return cls(cfg.evaluation_transforms)

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels to which images are resized."""
        return self._input_size

    def resized(self, input_size: Sequence[int]) -> Preprocessing:
        """Return the same preprocessing for another (height, width)."""
        ops = []
        for op in self.ops:
            if op["type"] == "Resize":
                op = {**op, "size": list(input_size)}
            ops.append(op)
        return Preprocessing(ops)

    def __call__(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Preprocess a batch of images.

        Args:
            images: `[3, h, w]` uint8 each, RGB, of any sizes.

        Returns:
            `[B, 3, H, W]` float32 for the model, and (width, height) of each image, `[B, 2]` int64, for the
            post-processor.
        """
        batch = torch.empty(len(images), 3, *self.input_size)
        sizes = []
        for image, out in zip(images, batch):
            sample = Sample(
                image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0)
            )
            sizes.append(sample.canvas)
            self._transforms(sample).render(out=out)
        return batch, torch.tensor(sizes)

    def __repr__(self) -> str:
        steps = ["RGB"]
        for op in self.ops:
            arguments = []
            for key, value in op.items():
                if key != "type":
                    arguments.append(f"{key}={value}")
            steps.append(f"{op['type']}({', '.join(arguments)})")
        return " -> ".join(steps)
