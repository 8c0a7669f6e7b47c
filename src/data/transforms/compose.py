"""The list of transforms, when each acts, and the ones that say what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import find, names, register
from ...core.validate import did_you_mean
from .sample import Sample


class Transform(Protocol):
    """Changes a sample in place, drawing chance from `sample.rng` alone."""

    def __call__(self, sample: Sample) -> None:
        """Change a sample."""


@register()
class Compose:
    """Applies transforms in order, leaving some out in the clean stage."""

    __inject__ = ["ops"]

    def __init__(self, ops: list[Transform] | None = None, policy: dict[str, Any] | None = None) -> None:
        """Store the transforms.

        Args:
            ops: in order.
            policy: None or `{name: default}` for always all; `{name: stop_epoch, epoch: E, ops: [class names]}` leaves
                the named ones out from epoch E on.

        Raises:
            ConfigError: for an unknown policy, or one that names no transform.
        """
        self.ops = list(ops or [])
        policy = policy or {"name": "default"}
        for key in policy.keys() - {"name", "epoch", "ops"}:
            raise ConfigError(f"unknown key 'Compose.policy.{key}'{did_you_mean(key, ['name', 'epoch', 'ops'])}")
        if policy.get("name") not in ("default", "stop_epoch"):
            raise ConfigError(f"Compose.policy.name is {policy.get('name')!r}, expected 'default' or 'stop_epoch'")
        self.stop_epoch: int | None = None
        self.stopped: frozenset[str] = frozenset()
        if policy["name"] == "stop_epoch":
            epoch, stopped = policy.get("epoch"), policy.get("ops")
            if not isinstance(epoch, int | None) or not isinstance(stopped, list):
                raise ConfigError(f"Compose.policy is {policy}, expected epoch (a whole number, or null for never) and ops (a list of class names)")
            for name in stopped:
                if find(name) is None:
                    raise ConfigError(f"Compose.policy.ops names '{name}', which is not registered{did_you_mean(name, names())}")
            self.stop_epoch, self.stopped = epoch, frozenset(stopped)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) that all samples leave with, or None if they keep sizes of their own."""
        return next((tuple(op.size) for op in reversed(self.ops) if hasattr(op, "size")), None)

    def __call__(self, sample: Sample, epoch: int = 0) -> Sample:
        """Apply the transforms that act in `epoch` and return the sample."""
        clean = self.stop_epoch is not None and epoch >= self.stop_epoch
        for transform in self.ops:
            if not (clean and type(transform).__name__ in self.stopped):
                transform(sample)
        return sample


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
        self.fmt, self.normalize = fmt, normalize

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
            raise ConfigError(f"Normalize: mean {list(mean)} and std {list(std)} need three numbers each, std above 0")
        self.mean, self.std = np.asarray(mean, float), np.asarray(std, float)

    def __call__(self, sample: Sample) -> None:
        """Set the normalisation of the result; it makes it floating-point."""
        sample.as_float = True
        sample.normalize = (self.mean, self.std)
