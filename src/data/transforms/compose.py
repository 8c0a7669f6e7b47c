"""The list of transforms, the schedule of each, and the transforms that set the form of the result."""

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
"""Transforms that are not applied to mosaics, which are scaled and cropped already (DEIM)."""


class Transform(Protocol):
    """Interface of transforms: change a sample in place, with `sample.rng` as the only random generator.

    >>> class Darken:
    ...     def __call__(self, sample):
    ...         sample.colour = 0.5 * np.eye(3, 4)
    >>> image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    >>> sample = Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> darkened, _ = Compose([Darken()])(sample).render()
    >>> darkened.unique().tolist()
    [50]
    """

    def __call__(self, sample: Sample) -> None:
        """Change a sample."""


@runtime_checkable
class Tracked(Protocol):
    """A transform whose effect on boxes is not random, so the boxes that it drops are known without
    images.
    """

    drops: str
    """Description of the boxes that it drops, such as "smaller than 1 pixel"."""

    def track(
        self, boxes: np.ndarray, canvas: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow boxes of many images.

        Args:
            boxes: `[M, 4]`, xyxy in pixels of the canvas.
            canvas: `[M, 2]`, (width, height) of each box's canvas.

        Returns:
            Boxes and canvas after the transform, and a mask of the boxes that are kept, `[M]`.
        """


class Policy(TypedDict, total=False):
    """Schedule of transforms, in the form of a configuration."""

    name: Literal["default", "stop_epoch"]
    epoch: LoaderEpochLength | list[LoaderEpochLength | None] | None
    ops: list[str]
    """Class names of the transforms that have this schedule."""


@runtime_checkable
class FixedSize(Protocol):
    """A transform after which all samples have the same size."""

    size: tuple[int, int]
    """(height, width) in pixels."""


@register()
class Compose:
    """Apply transforms in order, some of them only in some epochs.

    >>> from src.data.transforms import RandomHorizontalFlip, Resize
    >>> Compose([RandomHorizontalFlip(), Resize([320, 480])]).output_size
    (320, 480)
    """

    __inject__ = ["ops"]

    def __init__(
        self,
        ops: list[Transform] | None = None,
        policy: Policy | None = None,
        mosaic_prob: float = 1.0,
    ) -> None:
        """Store the transforms.

        Args:
            ops: transforms, in order.
            policy: None or `{name: default}` always applies all transforms. `{name: stop_epoch, epoch: E,
                ops: [class names]}` skips the named ones from epoch E on (E = None: never). If E is a list of
                three epochs, the named ones are applied from the first to the third, and Mosaic only up to
                the second (DEIM's schedule).
            mosaic_prob: probability that a Mosaic in the list is applied to a sample, if the policy permits
                it.

        Raises:
            ConfigError: if the policy is unknown, names an unregistered transform, or has epochs that do not
                ascend; if a Mosaic is not the first transform; or if the size of its tiles is neither set nor
                known from the other transforms.
        """
        self.ops = list(ops or [])
        self.mosaic_prob = mosaic_prob
        if not 0 <= mosaic_prob <= 1:
            raise ConfigError(
                f"Compose.mosaic_prob is {mosaic_prob}, expected 0 to 1"
            )
        for before, op in zip(self.ops, self.ops[1:]):
            if isinstance(op, Mosaic):
                raise ConfigError(
                    f"Compose.ops has Mosaic after {type(before).__name__}; it combines unchanged images, "
                    "move it to the front"
                )
        for op in self.ops:
            if isinstance(op, Mosaic):
                op.fit_to(self.output_size)
        points, self.named = _read_policy(policy or {"name": "default"})
        check_ascending(points, "Compose.policy.epoch")
        self.start, self.mosaic_stop, self.stop = points

    @property
    def mixing(self) -> list[str]:
        """Names of the transforms that combine several images."""
        return [type(op).__name__ for op in self.ops if isinstance(op, Mosaic)]

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of all samples after the transforms, or None if their sizes differ."""
        for op in reversed(self.ops):
            if isinstance(op, FixedSize):
                return op.size
        return None

    def tile_scale(self, size: tuple[int, int]) -> float:
        """Return the largest scale at which a Mosaic draws another image of (width, height)."""
        for op in self.ops:
            if isinstance(op, Mosaic):
                return op.tile_scale(size)
        return 1.0

    def __call__(self, sample: Sample, epoch: int = 0) -> Sample:
        """Apply the transforms that are scheduled in `epoch`, and return the sample."""
        for transform in self.ops:
            name = type(transform).__name__
            if self._acts(name, sample, epoch):
                before = len(sample.boxes)
                transform(sample)
                if len(sample.boxes) < before:
                    sample.lost[name] += before - len(sample.boxes)
        return sample

    def certain_losses(
        self, boxes: np.ndarray, sizes: np.ndarray
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the boxes that the transforms drop in every epoch because they are too small, with the
        reason.

        Random transforms are ignored: the boxes that they drop differ between epochs and are counted in
        `log.txt`.

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
                boxes = boxes[kept]
                canvas = canvas[kept]
                rows = rows[kept]

    def _acts(self, name: str, sample: Sample, epoch: int) -> bool:
        """Return whether a transform is applied to a sample; a Mosaic draws a random number."""
        stop = self.mosaic_stop if name == "Mosaic" else self.stop
        if name in self.named and not is_between(epoch, self.start, stop):
            return False
        if name == "Mosaic":
            return sample.rng.random() < self.mosaic_prob
        return not (sample.is_mosaic and name in NOT_ON_MOSAICS)


def _read_policy(policy: Policy) -> tuple[list[int | None], frozenset[str]]:
    """Return three epochs and the names of the transforms that have a schedule.

    The named transforms start in the first epoch, Mosaic stops in the second, the others stop in the third.
    """
    keys = ["name", "epoch", "ops"]
    for key in policy.keys() - set(keys):
        hint = did_you_mean(key, keys)
        raise ConfigError(f"unknown key 'Compose.policy.{key}'{hint}")
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
            f"Compose.policy is {policy}, expected epoch (the epoch in which the named transforms "
            "stop, or null; or a list of three: when they start, when Mosaic stops, when all stop) and ops "
            "(a list of class names)"
        )
    for name in named:
        if find(name) is None:
            hint = did_you_mean(name, names())
            raise ConfigError(
                f"Compose.policy.ops names '{name}', which is not registered{hint}"
            )
    return points, frozenset(named)


@register()
class EmptyTransform:
    """Do nothing; a placeholder in a list of transforms.

    >>> sample = Sample(torch.zeros(3, 2, 2), np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> EmptyTransform()(sample)
    >>> sample.canvas
    (2, 2)
    """

    def __call__(self, sample: Sample) -> None:
        """Leave the sample unchanged."""


@register()
class ConvertPILImage:
    """Return the image as a floating-point tensor. The name is from D-FINE; no PIL image is involved.

    >>> image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    >>> sample = Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> rendered, _ = Compose([ConvertPILImage()])(sample).render()
    >>> rendered.dtype, rendered.unique().tolist()
    (torch.float32, [1.0])
    """

    def __init__(
        self, dtype: Literal["float32"] = "float32", scale: bool = True
    ) -> None:
        """Store the settings; `scale` converts values from 0..255 to 0..1."""
        self.scale = scale

    def __call__(self, sample: Sample) -> None:
        """Set the type of the result."""
        sample.as_float = True
        sample.value_scale = 1 / 255 if self.scale else 1.0


@register()
class ConvertBoxes:
    """Return the boxes in another format.

    >>> image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    >>> sample = Sample(image, np.array([[0.0, 5, 20, 15]]), {}, {}, np.random.default_rng(0))
    >>> _, target = Compose([ConvertBoxes("cxcywh", normalize=True)])(sample).render()
    >>> target["boxes"].tolist()
    [[0.25, 0.5, 0.5, 0.5]]
    """

    def __init__(
        self, fmt: Literal["xyxy", "cxcywh", ""] = "", normalize: bool = False
    ) -> None:
        """Store the format ("" keeps it) and whether boxes are relative to the image size."""
        self.fmt = fmt
        self.normalize = normalize

    def __call__(self, sample: Sample) -> None:
        """Set the format of the result."""
        if self.fmt:
            sample.box_format = self.fmt
        sample.relative_boxes = self.normalize


@register()
class Normalize:
    """Subtract a mean and divide by a standard deviation per channel. DINOv3Backbone does this itself.

    >>> image = torch.full((3, 2, 2), 255, dtype=torch.uint8)
    >>> sample = Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> normalize = Normalize(mean=[0.5, 0.5, 0.5], std=[0.25, 0.25, 0.25])
    >>> rendered, _ = Compose([ConvertPILImage(), normalize])(sample).render()
    >>> rendered.unique().tolist()
    [2.0]
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Store three means and three standard deviations, in the value range of the image at this point."""
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ConfigError(
                f"Normalize: mean {list(mean)} and std {list(std)} need three numbers each, std above 0"
            )
        self.mean = np.asarray(mean, float)
        self.std = np.asarray(std, float)

    def __call__(self, sample: Sample) -> None:
        """Set the normalization of the result, which becomes floating-point."""
        sample.as_float = True
        sample.normalize = (self.mean, self.std)
