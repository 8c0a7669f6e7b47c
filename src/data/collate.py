"""Collation: turn samples into a batch.

The size of a batch is chosen here, before pixels are resampled; its images are mixed here, after resampling.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
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
"""Image sides are multiples of this number of pixels."""

ALWAYS_NEW = 2**25
"""Bytes of an allocation that glibc always takes from the system instead of from memory that was freed."""

FIELDS = ("boxes", "labels", "area", "iscrowd")
"""Keys of finished targets that hold one row per box."""


@register()
class BatchImageCollateFunction:
    """Stack images into a batch, draw a size for each training batch, and mix the images.

    A batch is mixed by mixup or else by CopyBlend (DEIM, DEIMv2; `transforms/batch_mixing.py`), each with its
    own probability.
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
            stop_epoch: first epoch of the final stage without strong augmentation ("clean stage"), in which
                all batches have the base size; None disables this stage.
            ema_restart_decay: decay of the EMA from that epoch on; None keeps the previous decay.
            base_size: height around which sizes are drawn; widths are scaled in proportion.
            base_size_repeat: number of times the base size occurs in the list of sizes; None uses only the
                base size.
            mixup_prob: probability that a batch is blended with itself.
            mixup_epochs: first epoch with mixup and first epoch without (None: no end); None means all epochs
                before the clean stage.
            copyblend_prob: probability that objects are copied within a batch that mixup leaves unchanged.
            copyblend_epochs: same form as `mixup_epochs`.
            copyblend_type: "blend" mixes a copy with the pixels below it, "paste" replaces them.
            area_threshold: minimum area of an object to copy, in square pixels of the batch's images.
            num_objects: copies per image.
            with_expand: also copy some of the surroundings of an object.
            expand_ratios: minimum and maximum margin on each side, as a fraction of the object's width or
                height.

        Raises:
            ConfigError: if a value is out of range.
        """
        if base_size < STRIDE or base_size % STRIDE:
            raise ConfigError(
                f"BatchImageCollateFunction.base_size is {base_size}, expected a multiple of {STRIDE}"
            )
        for name, probability in (
            ("mixup_prob", mixup_prob),
            ("copyblend_prob", copyblend_prob),
        ):
            if not 0 <= probability <= 1:
                raise ConfigError(
                    f"BatchImageCollateFunction.{name} is {probability}, expected 0 to 1"
                )
        self.stop_epoch = stop_epoch
        self.mixup_epochs = _span("mixup_epochs", mixup_epochs, stop_epoch)
        self.copyblend_epochs = _span(
            "copyblend_epochs", copyblend_epochs, stop_epoch
        )
        self.mixup_prob = mixup_prob
        self.copyblend_prob = copyblend_prob
        self.copy_blend = CopyBlend(
            copyblend_type,
            area_threshold,
            num_objects,
            with_expand,
            expand_ratios,
        )
        if ema_restart_decay is not None and not 0 <= ema_restart_decay <= 1:
            raise ConfigError(
                f"collate_fn.ema_restart_decay is {ema_restart_decay}, expected 0 to 1, or ~"
            )
        self.ema_restart_decay = ema_restart_decay
        self.base_size = base_size
        self.scales: list[int] | None = None
        if base_size_repeat is not None:
            self.scales = generate_scales(base_size, base_size_repeat)
        self.epoch = 0

    @property
    def mixing(self) -> list[str]:
        """Names of the settings that enable mixing."""
        enabled = []
        if self.mixup_prob:
            enabled.append("mixup_prob")
        if self.copyblend_prob:
            enabled.append("copyblend_prob")
        return enabled

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch."""
        self.epoch = epoch

    def __call__(self, items: list[Any]) -> Batch:
        """Return images `[B, 3, H, W]` and their targets.

        Args:
            items: samples, which are rendered at the size of this batch; or finished images of equal size
                with their targets, of which mixing joins the keys in `FIELDS`.

        Raises:
            ConfigError: if mixing is enabled and images are not floating-point with boxes as cxcywh in 0..1.
        """
        first = items[0]
        fields: tuple[str, ...]
        if isinstance(first, Sample):
            rng = first.rng
            box_format = first.box_format
            fields = ("boxes", *first.fields)
            images, targets = self._render(items)
        else:
            finished, targets = map(list, zip(*items))
            index = int(targets[0].get("idx", 0))
            rng = np.random.default_rng([self.epoch, index])
            box_format = "cxcywh"
            fields = _common_fields(targets)
            images = self._stacked(finished, rng)
        if self.mixing:
            check_mixable(images, targets, box_format)
            targets = self._mix(images, targets, fields, rng)
        return images, targets

    def _stacked(
        self, finished: list[Tensor], rng: np.random.Generator
    ) -> Tensor:
        """Return finished images as a batch, resized if another size is drawn."""
        images = torch.stack(finished)
        height, width = images.shape[-2:]
        size = self._draw_size((height, width), rng)
        if size == (height, width):
            return images
        return F.interpolate(images, size)

    def _render(self, samples: list[Sample]) -> Batch:
        first = samples[0]
        width, height = first.canvas
        size = self._draw_size((height, width), first.rng)
        dtype = torch.float32 if first.as_float else torch.uint8
        images = _allocate((len(samples), 3, *size), dtype)
        targets = []
        for sample, image in zip(samples, images):
            _, target = sample.render(size, image)
            targets.append(target)
        return images, targets

    def _mix(
        self,
        images: Tensor,
        targets: list[Target],
        fields: tuple[str, ...],
        rng: np.random.Generator,
    ) -> list[Target]:
        """Mix images in place, with the random generator of the first image, and return their targets."""
        uses_mixup = is_between(self.epoch, *self.mixup_epochs)
        if uses_mixup and rng.random() < self.mixup_prob:
            return mixup(images, targets, fields, rng)
        uses_copyblend = is_between(self.epoch, *self.copyblend_epochs)
        if uses_copyblend and rng.random() < self.copyblend_prob:
            return self.copy_blend(images, targets, fields, rng)
        return targets

    def largest_size(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the largest (height, width) that a batch of images of a size can have."""
        if self.scales is None or self.stop_epoch == 0:
            return size_hw
        return self._scaled(max(self.scales), size_hw)

    def _scaled(self, drawn: int, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the drawn height, and the width in proportion as a multiple of the stride."""
        height, width = size_hw
        strides = round(drawn * width / height / STRIDE)
        return drawn, max(STRIDE, strides * STRIDE)

    def _draw_size(
        self, size_hw: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        """Draw a height from the list, and scale the width in proportion.

        Args:
            size_hw: (height, width) without a random size.
            rng: random generator of the first image.
        """
        if self.scales is None:
            return size_hw
        if self.stop_epoch is not None and self.epoch >= self.stop_epoch:
            return size_hw
        drawn = self.scales[rng.integers(len(self.scales))]
        return self._scaled(int(drawn), size_hw)


def _common_fields(targets: list[Target]) -> tuple[str, ...]:
    """Return the names in `FIELDS` that all targets have."""
    common = []
    for name in FIELDS:
        if all(name in target for target in targets):
            common.append(name)
    return tuple(common)


def _span(
    name: str,
    epochs: Sequence[int | None] | None,
    stop_epoch: int | None,
) -> tuple[int | None, int | None]:
    """Return the first epoch with a kind of mixing and the first without it.

    The default is all epochs before the clean stage.
    """
    if epochs is None:
        return 0, stop_epoch
    if len(epochs) != 2:
        raise ConfigError(
            f"BatchImageCollateFunction.{name} is {list(epochs)}, "
            "expected two values: the first epoch with it and the first without"
        )
    check_ascending(epochs, f"BatchImageCollateFunction.{name}")
    first, end = epochs
    return first, end


def _allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialized batch.

    A worker process allocates it in shared memory, so it need not be copied.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if get_worker_info() is None:
        return _in_large_pages(num_bytes, dtype).view(shape)
    storage = torch.UntypedStorage._new_shared(num_bytes)
    flat = torch.empty(0, dtype=dtype).set_(storage)
    return flat.view(shape)


def _in_large_pages(num_bytes: int, dtype: torch.dtype) -> Tensor:
    """Return an uninitialized tensor; a large one is in large pages of memory if the system has them.

    The system clears new memory page by page when it is first written. For a batch in pages of 4 KiB, this
    takes longer than resampling its images.
    """
    if num_bytes < ALWAYS_NEW or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(num_bytes // dtype.itemsize, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


def generate_scales(base_size: int, repeat: int) -> list[int]:
    """Return the sizes to draw from: 0.75 to 1.25 of the base size in steps of 32.

    The base size is among them `repeat` times.

    >>> generate_scales(128, 2)
    [96, 128, 128, 160]
    """
    low = max(STRIDE, int(base_size * 0.75 / STRIDE) * STRIDE)
    high = int(base_size * 1.25 / STRIDE) * STRIDE
    count = (base_size - low) // STRIDE
    below = range(low, low + count * STRIDE, STRIDE)
    above = range(high, high - count * STRIDE, -STRIDE)
    return [*below, *[base_size] * repeat, *above]
