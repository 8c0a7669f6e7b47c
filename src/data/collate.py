"""From samples to a batch; the size of the batch is chosen here, before the pixels are resampled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from ..core.durations import Duration, RunLength, settled_points
from ..core.errors import ConfigError
from ..core.registry import register
from .transforms.sample import Sample

STRIDE = 32
"""Sides of images are multiples of this."""

Batch = tuple[Tensor, list[dict[str, Any]]]


@register()
class BatchImageCollateFunction:
    """Stacks images, in training with another size for each batch."""

    def __init__(self, stop_epoch: Duration | None = None, ema_restart_decay: float = 0.9999, base_size: int = 640,
                 base_size_repeat: int | None = None) -> None:
        """Store the settings.

        Args:
            stop_epoch: first epoch of the clean stage, from which on all batches have the base size; None for never.
            ema_restart_decay: decay of the weight average from that epoch on.
            base_size: height around which sizes are drawn; widths follow in proportion.
            base_size_repeat: how often the base size itself stands in the list of sizes; None for that size alone.
        """
        if base_size < STRIDE or base_size % STRIDE:
            raise ConfigError(f"BatchImageCollateFunction.base_size is {base_size}, expected a multiple of {STRIDE}")
        self._stop_epoch = stop_epoch
        self.ema_restart_decay = ema_restart_decay
        self.base_size = base_size
        self.scales = generate_scales(base_size, base_size_repeat) if base_size_repeat is not None else None
        self.epoch = 0
        self._settle()

    def set_run_length(self, run: RunLength) -> None:
        """Settle epochs that depend on the run's length; until then they are None."""
        self._settle(run)

    def _settle(self, run: RunLength | None = None) -> None:
        (self.stop_epoch,) = settled_points([self._stop_epoch], "BatchImageCollateFunction.stop_epoch", run)

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch it is."""
        self.epoch = epoch

    def __call__(self, items: list[Sample] | list[tuple[Tensor, dict[str, Any]]]) -> Batch:
        """Return images `[B, 3, H, W]` and their targets.

        Args:
            items: samples, which are rendered at the size of this batch; or finished images of equal size with targets.
        """
        if isinstance(items[0], Sample):
            return self._render(items)
        images, targets = torch.stack([image for image, _ in items]), [target for _, target in items]
        size = self._draw_size(images.shape[-2:], np.random.default_rng([self.epoch, int(targets[0].get("idx", 0))]))
        if size != tuple(images.shape[-2:]):
            images = F.interpolate(images, size)
        return images, targets

    def _render(self, samples: list[Sample]) -> Batch:
        width, height = samples[0].canvas
        size = self._draw_size((height, width), samples[0].rng)
        images = _allocate((len(samples), 3, *size), torch.float32 if samples[0].as_float else torch.uint8)
        return images, [sample.render(size, image)[1] for sample, image in zip(samples, images)]

    def _draw_size(self, size_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw a height from the list and scale the width alike; the chance is that of the batch's first image."""
        height, width = size_hw
        if self.scales is None or (self.stop_epoch is not None and self.epoch >= self.stop_epoch):
            return height, width
        drawn = int(self.scales[rng.integers(len(self.scales))])
        return drawn, max(STRIDE, round(drawn * width / height / STRIDE) * STRIDE)


def _allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an empty batch; in a worker process in shared memory, so that it is not copied on its way out."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage).view(shape)


def generate_scales(base_size: int, repeat: int) -> list[int]:
    """Return the sizes to draw from: from 0.75 to 1.25 of the base in steps of 32, the base itself `repeat` times."""
    low = max(STRIDE, int(base_size * 0.75 / STRIDE) * STRIDE)
    high = int(base_size * 1.25 / STRIDE) * STRIDE
    steps = (base_size - low) // STRIDE
    return [low + i * STRIDE for i in range(steps)] + [base_size] * repeat + [high - i * STRIDE for i in range(steps)]
