"""The list of transforms, when each acts, and the ones that say what comes out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, TypedDict, runtime_checkable

import numpy as np

from ...core.durations import LoaderEpochLength, check_ascending, is_between
from ...core.errors import ConfigError
from ...core.registry import find, names, register
from ...core.validate import did_you_mean
from .mosaic import Mosaic
from .sample import Sample

NOT_ON_MOSAICS = {"RandomZoomOut", "RandomIoUCrop"}
"""Transforms that leave mosaics alone, which have been scaled and cut already (DEIM)."""


class Transform(Protocol):
    """Changes a sample in place, drawing chance from `sample.rng` alone."""

    def __call__(self, sample: Sample) -> None:
        """Change a sample."""


@runtime_checkable
class Tracked(Protocol):
    """A transform that treats boxes alike whatever chance does, so that what it drops is known without an image."""

    drops: str
    """What it drops, such as "smaller than 1 pixel"."""

    def track(self, boxes: np.ndarray, canvas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow boxes of many images.

        Args:
            boxes: `[M, 4]`, xyxy in pixels of the canvas.
            canvas: `[M, 2]`, (width, height) of each box's canvas.

        Returns:
            Boxes and canvas afterwards, and which boxes are kept, `[M]`.
        """


class Policy(TypedDict, total=False):
    """When transforms act, as a configuration writes it."""

    name: Literal["default", "stop_epoch"]
    epoch: LoaderEpochLength | list[LoaderEpochLength | None] | None
    ops: list[str]
    """Names of the classes that it is about."""


@runtime_checkable
class FixedSize(Protocol):
    """A transform after which all samples have one size."""

    size: tuple[int, int]
    """(height, width) in pixels."""


@register()
class Compose:
    """Applies transforms in order, some of them in some epochs only."""

    __inject__ = ["ops"]

    def __init__(
        self,
        ops: list[Transform] | None = None,
        policy: Policy | None = None,
        mosaic_prob: float = 1.0,
    ) -> None:
        """Store the transforms.

        Args:
            ops: in order.
            policy: None or `{name: default}` for always all; `{name: stop_epoch, epoch: E, ops: [class names]}` leaves
                the named ones out from epoch E on (None for never). With three points in place of E,
                they act from the first to the third only, and Mosaic among them only to the second (DEIM's schedule).
            mosaic_prob: chance with which a Mosaic in the list acts on a sample, where the policy lets it.

        Raises:
            ConfigError: for an unknown policy, one that names no transform, or points that do not ascend; for a Mosaic
                that is not the first transform.
        """
        self.ops = list(ops or [])
        self.mosaic_prob = mosaic_prob
        if not 0 <= mosaic_prob <= 1:
            raise ConfigError(f"Compose.mosaic_prob is {mosaic_prob}, expected 0 to 1")
        if place := next((number for number, op in enumerate(self.ops) if isinstance(op, Mosaic)), 0):
            raise ConfigError(
                f"Compose.ops has Mosaic after {type(self.ops[place - 1]).__name__}; it puts images together as they are, move it to the front"
            )
        points, self.named = _read_policy(policy or {"name": "default"})
        check_ascending(points, "Compose.policy.epoch")
        self.start, self.mosaic_stop, self.stop = points

    @property
    def mixing(self) -> list[str]:
        """Transforms that put several images together."""
        return [type(op).__name__ for op in self.ops if isinstance(op, Mosaic)]

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) that all samples leave with, or None if they keep sizes of their own."""
        return next((op.size for op in reversed(self.ops) if isinstance(op, FixedSize)), None)

    def __call__(self, sample: Sample, epoch: int = 0) -> Sample:
        """Apply the transforms that act in `epoch` and return the sample."""
        for transform in self.ops:
            name = type(transform).__name__
            if self._acts(name, sample, epoch):
                before = len(sample.boxes)
                transform(sample)
                if len(sample.boxes) < before:
                    sample.lost[name] += before - len(sample.boxes)
        return sample

    def certain_losses(self, boxes: np.ndarray, sizes: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """Yield what the transforms drop in every epoch, with the reason: boxes that are too small at the size of the input.

        Random transforms are passed over; what they drop differs from epoch to epoch and is counted in `log.txt`.

        Args:
            boxes: `[M, 4]`, xyxy in pixels of the images.
            sizes: `[M, 2]`, (width, height) of each box's image.
        """
        canvas = sizes
        here = "in the image"
        rows = np.arange(len(boxes))
        for transform in self.ops:
            if not isinstance(transform, Tracked):
                continue
            boxes, canvas, kept = transform.track(boxes, canvas)
            if isinstance(transform, FixedSize):
                here = "at {} x {}".format(*transform.size)
            if not kept.all():
                lost = np.zeros(len(sizes), bool)
                lost[rows[~kept]] = True
                yield f"{transform.drops} {here}", lost
                boxes, canvas, rows = boxes[kept], canvas[kept], rows[kept]

    def _acts(self, name: str, sample: Sample, epoch: int) -> bool:
        if name in self.named and not is_between(
            epoch, self.start, self.mosaic_stop if name == "Mosaic" else self.stop
        ):
            return False
        if name == "Mosaic":
            return sample.rng.random() < self.mosaic_prob
        return not (sample.is_mosaic and name in NOT_ON_MOSAICS)


def _read_policy(policy: Policy) -> tuple[list[int | None], frozenset[str]]:
    """Return when the named transforms start, when Mosaic and when the others of them stop; and their names."""
    for key in policy.keys() - {"name", "epoch", "ops"}:
        raise ConfigError(f"unknown key 'Compose.policy.{key}'{did_you_mean(key, ['name', 'epoch', 'ops'])}")
    if policy.get("name") not in ("default", "stop_epoch"):
        raise ConfigError(
            f"Compose.policy.name is {policy.get('name')!r}, expected 'default' or 'stop_epoch'"
        )
    if policy["name"] == "default":
        return [0, None, None], frozenset()
    epoch = policy.get("epoch")
    named = policy.get("ops")
    points = epoch if isinstance(epoch, list) else [0, epoch, epoch]
    if len(points) != 3 or not isinstance(named, list):
        raise ConfigError(
            f"Compose.policy is {policy}, expected epoch (when the named transforms stop, null for never; or a list of three: when they start, "
            f"when Mosaic stops, when all stop) and ops (a list of class names)"
        )
    for name in named:
        if find(name) is None:
            raise ConfigError(
                f"Compose.policy.ops names '{name}', which is not registered{did_you_mean(name, names())}"
            )
    return points, frozenset(named)


@register()
class EmptyTransform:
    """Does nothing; a place holder in a list."""

    def __call__(self, sample: Sample) -> None:
        """Leave the sample."""


@register()
class ConvertPILImage:
    """Gives the image as floating-point tensor. The name is D-FINE's; no PIL image is involved."""

    def __init__(self, dtype: Literal["float32"] = "float32", scale: bool = True) -> None:
        """Store whether values are scaled from 0..255 to 0..1."""
        self.scale = scale

    def __call__(self, sample: Sample) -> None:
        """Set the type of the result."""
        sample.as_float = True
        sample.value_scale = 1 / 255 if self.scale else 1.0


@register()
class ConvertBoxes:
    """Gives boxes in another format."""

    def __init__(self, fmt: Literal["xyxy", "cxcywh", ""] = "", normalize: bool = False) -> None:
        """Store the format, "" for as it is, and whether boxes are relative to the image's size."""
        self.fmt = fmt
        self.normalize = normalize

    def __call__(self, sample: Sample) -> None:
        """Set the format of the result."""
        if self.fmt:
            sample.box_format = self.fmt
        sample.relative_boxes = self.normalize


@register()
class Normalize:
    """Subtracts a mean and divides by a standard deviation, a channel each. DINOv3Backbone does this by itself."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store three means and three deviations, in the scale that the image has by then."""
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"Normalize: mean {list(mean)} and std {list(std)} need three numbers each, std above 0"
            )
        self.mean = np.asarray(mean, float)
        self.std = np.asarray(std, float)

    def __call__(self, sample: Sample) -> None:
        """Set the normalisation of the result; it makes it floating-point."""
        sample.as_float = True
        sample.normalize = (self.mean, self.std)
