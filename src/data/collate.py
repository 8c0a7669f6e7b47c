"""From samples to a batch; its size is chosen here, before the pixels are resampled, and its images are mixed here, after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from ..core.contracts import Batch, Target
from ..core.durations import LoaderEpochLength, check_ascending, is_between
from ..core.errors import ConfigError
from ..core.registry import register
from .transforms.batch_mixing import CopyBlend, check_mixable, mixup
from .transforms.sample import Sample

STRIDE = 32
"""Sides of images are multiples of this."""

FIELDS = ("boxes", "labels", "area", "iscrowd")
"""What finished targets have a row a box of."""


@register()
class BatchImageCollateFunction:
    """Stacks images, in training with another size for each batch, and mixes them.

    A batch is mixed by mixup or else by CopyBlend (DEIM, DEIMv2; `transforms/batch_mixing.py`), each by a chance of its own.
    """

    def __init__(
        self,
        stop_epoch: LoaderEpochLength | None = None,
        ema_restart_decay: float | None = 0.9999,
        base_size: int = 640,
        base_size_repeat: int | None = None,
        mixup_prob: float = 0.0,
        mixup_epochs: Sequence[LoaderEpochLength | None] | None = None,
        copyblend_prob: float = 0.0,
        copyblend_epochs: Sequence[LoaderEpochLength | None] | None = None,
        copyblend_type: Literal["blend", "paste"] = "blend",
        area_threshold: float = 100,
        num_objects: int = 3,
        with_expand: bool = False,
        expand_ratios: Sequence[float] = (0.1, 0.25),
    ) -> None:
        """Store the settings.

        Args:
            stop_epoch: first epoch of the clean stage, from which on all batches have the base size; None for never.
            ema_restart_decay: decay of the EMA from that epoch on; None keeps the decay of before.
            base_size: height around which sizes are drawn; widths follow in proportion.
            base_size_repeat: how often the base size itself stands in the list of sizes; None for that size alone.
            mixup_prob: chance that a batch is blended with itself.
            mixup_epochs: first epoch with it, and the first without (None for never); None for all before the clean stage.
            copyblend_prob: chance that objects are copied about in a batch without mixup.
            copyblend_epochs: as `mixup_epochs`.
            copyblend_type: blend a copy with what lies below it, or cover that.
            area_threshold: least area of an object that is copied, in square pixels of the batch's images.
            num_objects: copies an image.
            with_expand: copy some of an object's surroundings too.
            expand_ratios: how much at each side, as a part of the object's width or height, least and most.

        Raises:
            ConfigError: for a value out of its range.
        """
        if base_size < STRIDE or base_size % STRIDE:
            raise ConfigError(
                f"BatchImageCollateFunction.base_size is {base_size}, expected a multiple of {STRIDE}"
            )
        for name, chance in (("mixup_prob", mixup_prob), ("copyblend_prob", copyblend_prob)):
            if not 0 <= chance <= 1:
                raise ConfigError(f"BatchImageCollateFunction.{name} is {chance}, expected 0 to 1")
        self.stop_epoch = stop_epoch
        self.mixup_epochs = _span("mixup_epochs", mixup_epochs, stop_epoch)
        self.copyblend_epochs = _span("copyblend_epochs", copyblend_epochs, stop_epoch)
        self.mixup_prob = mixup_prob
        self.copyblend_prob = copyblend_prob
        self.copy_blend = CopyBlend(copyblend_type, area_threshold, num_objects, with_expand, expand_ratios)
        if ema_restart_decay is not None and not 0 <= ema_restart_decay <= 1:
            raise ConfigError(f"collate_fn.ema_restart_decay is {ema_restart_decay}, expected 0 to 1, or ~")
        self.ema_restart_decay = ema_restart_decay
        self.base_size = base_size
        self.scales = generate_scales(base_size, base_size_repeat) if base_size_repeat is not None else None
        self.epoch = 0

    @property
    def mixing(self) -> list[str]:
        """Settings by which images are mixed."""
        chances = {"mixup_prob": self.mixup_prob, "copyblend_prob": self.copyblend_prob}
        return [name for name, chance in chances.items() if chance]

    def set_epoch(self, epoch: int) -> None:
        """Tell which epoch it is."""
        self.epoch = epoch

    def __call__(self, items: list[Any]) -> Batch:
        """Return images `[B, 3, H, W]` and their targets.

        Args:
            items: samples, which are rendered at the size of this batch; or finished images of equal size with targets,
                of which mixing joins what `FIELDS` names.

        Raises:
            ConfigError: if they shall be mixed and are not floating-point with boxes as cxcywh in 0..1.
        """
        first = items[0]
        fields: tuple[str, ...]
        if isinstance(first, Sample):
            rng = first.rng
            box_format = first.box_format
            fields = ("boxes", *first.fields)
            images, targets = self._render(items)
        else:
            targets = [target for _, target in items]
            rng = np.random.default_rng([self.epoch, int(targets[0].get("idx", 0))])
            box_format = "cxcywh"
            fields = tuple(name for name in FIELDS if all(name in target for target in targets))
            images = self._stacked([image for image, _ in items], rng)
        if self.mixing:
            check_mixable(images, targets, box_format)
            targets = self._mix(images, targets, fields, rng)
        return images, targets

    def _stacked(self, finished: list[Tensor], rng: np.random.Generator) -> Tensor:
        """Return finished images as a batch, resized if the batch has another size."""
        images = torch.stack(finished)
        height, width = images.shape[-2:]
        size = self._draw_size((height, width), rng)
        return images if size == (height, width) else F.interpolate(images, size)

    def _render(self, samples: list[Sample]) -> Batch:
        width, height = samples[0].canvas
        size = self._draw_size((height, width), samples[0].rng)
        images = _allocate((len(samples), 3, *size), torch.float32 if samples[0].as_float else torch.uint8)
        return images, [sample.render(size, image)[1] for sample, image in zip(samples, images)]

    def _mix(
        self, images: Tensor, targets: list[Target], fields: tuple[str, ...], rng: np.random.Generator
    ) -> list[Target]:
        """Mix images in place, with the chance of the batch's first, and return their targets."""
        ways: tuple[tuple[tuple[int | None, int | None], float, Callable[..., list[Target]]], ...] = (
            (self.mixup_epochs, self.mixup_prob, mixup),
            (self.copyblend_epochs, self.copyblend_prob, self.copy_blend),
        )
        for epochs, chance, mix in ways:
            if is_between(self.epoch, *epochs) and rng.random() < chance:
                return mix(images, targets, fields, rng)
        return targets

    def largest_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest (height, width) that a batch of images of a size can have."""
        if self.scales is None or self.stop_epoch == 0:
            return size_hw
        return self._scaled(max(self.scales), size_hw)

    def _scaled(self, drawn: int, size_hw: tuple[int, int]) -> tuple[int, int]:
        return drawn, max(STRIDE, round(drawn * size_hw[1] / size_hw[0] / STRIDE) * STRIDE)

    def _draw_size(self, size_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
        """Draw a height from the list and scale the width alike; the chance is that of the batch's first image."""
        height, width = size_hw
        if self.scales is None or (self.stop_epoch is not None and self.epoch >= self.stop_epoch):
            return height, width
        return self._scaled(int(self.scales[rng.integers(len(self.scales))]), (height, width))


def _span(
    name: str, epochs: Sequence[int | None] | None, stop_epoch: int | None
) -> tuple[int | None, int | None]:
    """Return the first epoch of something and the first without it: as given, or all before the clean stage."""
    if epochs is None:
        return 0, stop_epoch
    if len(epochs) != 2:
        raise ConfigError(
            f"BatchImageCollateFunction.{name} is {list(epochs)}, expected two: the first epoch with it and the first without"
        )
    check_ascending(epochs, f"BatchImageCollateFunction.{name}")
    first, end = epochs
    return first, end


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
    return (
        [low + i * STRIDE for i in range(steps)]
        + [base_size] * repeat
        + [high - i * STRIDE for i in range(steps)]
    )
