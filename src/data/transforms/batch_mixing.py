"""Mixing of the images of a batch, for more objects per image.

mixup is from DEIM (arXiv 2412.04234), CopyBlend from DEIMv2 (arXiv 2509.20787). Both take finished images of
one size, `[B, 3, H, W]` floating point, and targets with boxes as cxcywh in 0..1, and change the images in
place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from ...core.contracts import Target
from ...core.errors import ConfigError
from ...ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from .sample import PixelWindow

BLEND_RANGE = (0.45, 0.55)
"""Range of weights of the image that is blended in: near one half, because the objects of both count in
full."""

_SLACK_PX = 1e-3
"""Tolerance for floating-point error when relative boxes are converted to whole pixels."""


def check_mixable(
    images: Tensor, targets: list[Target], box_format: str = "cxcywh"
) -> None:
    """Check that images and boxes have the form that mixing needs.

    >>> targets = [{"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]
    >>> check_mixable(torch.rand(1, 3, 8, 8), targets)
    >>> check_mixable(torch.rand(1, 3, 8, 8), targets, "xyxy")
    Traceback (most recent call last):
    ...
    src.core.errors.ConfigError: mixup and CopyBlend take floating-point images and boxes as cxcywh...

    Raises:
        ConfigError: if they do not; the message names the transforms that produce this form.
    """
    largest = 0.0
    for target in targets:
        if len(target["boxes"]):
            largest = max(largest, float(target["boxes"].max()))
    if (
        not images.is_floating_point()
        or box_format != "cxcywh"
        or largest > 1.01
    ):
        raise ConfigError(
            "mixup and CopyBlend take floating-point images and boxes as cxcywh in 0..1, but got "
            f"{images.dtype} and {box_format} up to {largest:g}; end the transforms with ConvertPILImage and "
            "ConvertBoxes (fmt: cxcywh, normalize: True)"
        )


def mixup(
    images: Tensor,
    targets: list[Target],
    fields: Sequence[str],
    rng: np.random.Generator,
) -> list[Target]:
    """Blend each image with the one before it, all with the same weight; the objects of both count in full.

    A batch with one image is not changed.

    >>> images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    >>> targets = [{"boxes": torch.rand(count, 4)} for count in (1, 2)]
    >>> mixed = mixup(images, targets, ["boxes"], np.random.default_rng(0))
    >>> [len(target["boxes"]) for target in mixed]
    [3, 3]

    Args:
        images: `[B, 3, H, W]`, changed in place.
        targets: target of each image.
        fields: keys of targets that hold one row per box, including `boxes`.
        rng: random generator.

    Returns:
        New targets; keys that are not in `fields` keep the values of the image itself.
    """
    if len(targets) == 1:
        return targets
    weight = rng.uniform(*BLEND_RANGE)
    last = images[-1].clone()
    # backwards, so that the image before is still unchanged
    for number in reversed(range(1, len(images))):
        images[number].lerp_(images[number - 1], weight)
    images[0].lerp_(last, weight)
    others = [targets[-1], *targets]
    return [
        _joined(target, other, fields) for target, other in zip(targets, others)
    ]


def _rows(target: Target | dict[str, Tensor], name: str) -> Tensor:
    """Return a value of a target with one row per box."""
    return cast(dict[str, Tensor], target)[name]


def _joined(
    target: Target, other: Target | dict[str, Tensor], fields: Sequence[str]
) -> Target:
    """Return a target with the boxes of another one appended."""
    joined = {
        name: torch.cat([_rows(target, name), _rows(other, name)])
        for name in fields
    }
    return cast(Target, {**target, **joined})


def _in_pixels(boxes: Tensor, size: np.ndarray) -> np.ndarray:
    """Convert boxes `[N, 4]` from cxcywh in 0..1 to xyxy in pixels, clipped to the image.

    `size` is (width, height) twice.
    """
    corners = cxcywh_to_xyxy(boxes.double()).numpy()
    return (corners * size).clip(0, size)


def _relative(
    boxes_px: np.ndarray, size: np.ndarray, dtype: torch.dtype
) -> Tensor:
    """Convert boxes `[N, 4]` from xyxy in pixels to cxcywh in 0..1."""
    corners = torch.from_numpy(boxes_px / size)
    return xyxy_to_cxcywh(corners).to(dtype)


class _Copy(NamedTuple):
    """A patch, and the part of an image that it is copied to."""

    place: Tensor
    patch: Tensor
    weight: float


def _slices(window: PixelWindow) -> tuple[slice, slice]:
    """Return the rows and the columns of a window as slices."""
    x0, y0, x1, y1 = window
    return slice(y0, y1), slice(x0, x1)


def _random_place(
    window: PixelWindow, width: int, height: int, rng: np.random.Generator
) -> PixelWindow:
    """Return a window of the same size at a random place in an image."""
    x0, y0, x1, y1 = window
    window_width = x1 - x0
    window_height = y1 - y0
    free = np.array([width - window_width, height - window_height])
    x, y = rng.integers(0, free + 1).tolist()
    return x, y, x + window_width, y + window_height


class CopyBlend:
    """Copy objects of the batch to random places in its images.

    A copy can hide other objects completely; their boxes are kept, as in DEIMv2.

    >>> images = torch.rand(2, 3, 32, 32)
    >>> targets = [{"boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]])}, {"boxes": torch.zeros(0, 4)}]
    >>> paste = CopyBlend("paste", num_objects=1)
    >>> copied = paste(images, targets, ["boxes"], np.random.default_rng(0))
    >>> [len(target["boxes"]) for target in copied]
    [2, 1]
    """

    def __init__(
        self,
        kind: Literal["blend", "paste"] = "blend",
        area_threshold: float = 100,
        num_objects: int = 3,
        with_expand: bool = False,
        expand_ratios: Sequence[float] = (0.1, 0.25),
    ) -> None:
        """Store the settings.

        Args:
            kind: "blend" mixes a copy with the pixels below it, "paste" replaces them.
            area_threshold: minimum area of an object to copy, in square pixels of the batch's images.
            num_objects: copies per image; fewer if the batch does not have so many objects.
            with_expand: also copy some of the surroundings of an object; its box is not enlarged.
            expand_ratios: minimum and maximum margin on each side, as a fraction of the object's width or
                height.

        Raises:
            ConfigError: if a value is out of range.
        """
        if kind not in ("blend", "paste"):
            raise _refused("copyblend_type", kind, "'blend' or 'paste'")
        if not area_threshold > 0:
            raise _refused(
                "area_threshold", area_threshold, "square pixels, more than 0"
            )
        if not num_objects >= 1:
            raise _refused("num_objects", num_objects, "at least 1")
        if (
            len(expand_ratios) != 2
            or not 0 <= expand_ratios[0] <= expand_ratios[1]
        ):
            raise _refused(
                "expand_ratios",
                expand_ratios,
                "two numbers from 0, the smaller first",
            )
        self.weights = BLEND_RANGE if kind == "blend" else (1.0, 1.0)
        self.area_threshold = area_threshold
        self.num_objects = num_objects
        self.expand_ratios = (0.0, 0.0)
        if with_expand:
            self.expand_ratios = (expand_ratios[0], expand_ratios[1])

    def __call__(
        self,
        images: Tensor,
        targets: list[Target],
        fields: Sequence[str],
        rng: np.random.Generator,
    ) -> list[Target]:
        """Copy objects of the unchanged images into every image; arguments and result as in `mixup`."""
        height, width = images.shape[-2:]
        size = np.array([width, height, width, height], float)
        objects = {}
        for name in fields:
            objects[name] = torch.cat(
                [_rows(target, name) for target in targets]
            )
        counts = [len(target["boxes"]) for target in targets]
        owners = np.repeat(np.arange(len(targets)), counts)
        boxes_px = _in_pixels(objects["boxes"], size)  # [N, 4]
        areas = (boxes_px[:, 2:] - boxes_px[:, :2]).prod(1)
        large = np.flatnonzero(areas >= self.area_threshold)
        if not len(large):
            return targets
        copies: list[_Copy] = []
        result = []
        for number, target in enumerate(targets):
            chosen = rng.choice(
                large, min(self.num_objects, len(large)), replace=False
            )
            moved = []
            for index in chosen:
                source = images[owners[index]]
                copy, box_px = self._copy(
                    source, boxes_px[index], images[number], rng
                )
                copies.append(copy)
                moved.append(box_px)
            added = {name: values[chosen] for name, values in objects.items()}
            dtype = target["boxes"].dtype
            added["boxes"] = _relative(np.stack(moved), size, dtype)
            result.append(_joined(target, added, fields))
        for copy in copies:  # at the end, so that no copy contains another one
            copy.place.lerp_(copy.patch, copy.weight)
        return result

    def _copy(
        self,
        source: Tensor,
        box_px: np.ndarray,
        target: Tensor,
        rng: np.random.Generator,
    ) -> tuple[_Copy, np.ndarray]:
        """Take a patch around an object, for a random place in another image.

        Args:
            source: `[3, H, W]`, image with the object.
            box_px: `[4]`, box of the object, xyxy in pixels.
            target: `[3, H, W]`, image for the patch; it is not changed yet.
            rng: random generator.

        Returns:
            The patch, and the box at its new place.
        """
        height, width = source.shape[-2:]
        window = self._window(box_px, width, height, rng)
        place = _random_place(window, width, height, rng)
        rows, columns = _slices(window)
        patch = source[:, rows, columns].clone()
        rows, columns = _slices(place)
        copy = _Copy(
            target[:, rows, columns], patch, rng.uniform(*self.weights)
        )
        moved_by = np.subtract(place[:2], window[:2])
        return copy, box_px + np.tile(moved_by, 2)

    def _window(
        self,
        box_px: np.ndarray,
        width: int,
        height: int,
        rng: np.random.Generator,
    ) -> PixelWindow:
        """Return the pixels to copy for an object."""
        start = box_px[:2]
        end = box_px[2:]
        margin = rng.uniform(*self.expand_ratios) * (end - start)
        low = np.floor(start - margin + _SLACK_PX).clip(0)
        high = np.ceil(end + margin - _SLACK_PX).clip(max=[width, height])
        x0, y0 = low.astype(int).tolist()
        x1, y1 = high.astype(int).tolist()
        return x0, y0, x1, y1


def _refused(name: str, value: object, expected: str) -> ConfigError:
    """Return the error for a setting that is out of range."""
    return ConfigError(
        f"BatchImageCollateFunction.{name} is {value!r}, expected {expected}"
    )
