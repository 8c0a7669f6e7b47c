"""More objects an image by mixing the images of a batch: mixup (DEIM, arXiv 2412.04234) and CopyBlend (DEIMv2, arXiv 2509.20787).

Both work on finished images of one size, `[B, 3, H, W]` floating point, and on targets with boxes as cxcywh in 0..1,
and change the images in place.
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

BLEND_RANGE = (0.45, 0.55)
"""Weights of what is blended in: near one half, since the objects of both sides count in full."""

_SLACK_PX = 1e-3
"""Relative boxes of whole pixels are a little more or less than whole."""


def check_mixable(images: Tensor, targets: list[Target], box_format: str = "cxcywh") -> None:
    """Make sure that images and boxes come as mixing takes them.

    Raises:
        ConfigError: naming the transforms that bring them into that form.
    """
    largest = max((float(target["boxes"].max()) for target in targets if len(target["boxes"])), default=0.0)
    if not images.is_floating_point() or box_format != "cxcywh" or largest > 1.01:
        raise ConfigError(
            f"mixup and CopyBlend take floating-point images and boxes as cxcywh in 0..1, but got {images.dtype} and {box_format} up to "
            f"{largest:g}; end the transforms with ConvertPILImage and ConvertBoxes (fmt: cxcywh, normalize: True)"
        )


def mixup(
    images: Tensor, targets: list[Target], fields: Sequence[str], rng: np.random.Generator
) -> list[Target]:
    """Blend each image with the one before it, all with one weight; the objects of both count in full.

    A batch of one image stays as it is.

    Args:
        images: `[B, 3, H, W]`, changed in place.
        targets: of each image.
        fields: keys of targets that hold one row a box, `boxes` among them.
        rng: source of chance.

    Returns:
        New targets; what is no field is that of the image itself.
    """
    if len(targets) == 1:
        return targets
    weight = rng.uniform(*BLEND_RANGE)
    last = images[-1].clone()
    for number in range(
        len(images) - 1, 0, -1
    ):  # backwards, so that each is still itself when the next takes it in
        images[number].lerp_(images[number - 1], weight)
    images[0].lerp_(last, weight)
    return [_joined(target, other, fields) for target, other in zip(targets, [targets[-1], *targets])]


def _rows(target: Target | dict[str, Tensor], name: str) -> Tensor:
    """Return what a target has under a name: one row a box."""
    return cast(dict[str, Tensor], target)[name]


def _joined(target: Target, other: Target | dict[str, Tensor], fields: Sequence[str]) -> Target:
    """Return a target with the boxes of another one behind its own."""
    joined = {name: torch.cat([_rows(target, name), _rows(other, name)]) for name in fields}
    return cast(Target, {**target, **joined})


def _in_pixels(boxes: Tensor, size: np.ndarray) -> np.ndarray:
    """Return boxes `[N, 4]`, cxcywh in 0..1, as xyxy in pixels within the image; `size` is (width, height) twice."""
    return (cxcywh_to_xyxy(boxes.double()).numpy() * size).clip(0, size)


def _relative(boxes_px: np.ndarray, size: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Return boxes `[N, 4]`, xyxy in pixels, as cxcywh in 0..1."""
    return xyxy_to_cxcywh(torch.from_numpy(boxes_px / size)).to(dtype)


Window = tuple[int, int, int, int]
"""Whole pixels of an image, xyxy."""


class _Copy(NamedTuple):
    """A patch on its way to its place."""

    place: Tensor
    patch: Tensor
    weight: float


def _slices(window: Window) -> tuple[slice, slice]:
    """Return rows and columns."""
    x0, y0, x1, y1 = window
    return slice(y0, y1), slice(x0, x1)


def _random_place(window: Window, width: int, height: int, rng: np.random.Generator) -> Window:
    """Return a window of the same size at a random place of an image."""
    window_width, window_height = window[2] - window[0], window[3] - window[1]
    x, y = rng.integers(0, [width - window_width + 1, height - window_height + 1]).tolist()
    return x, y, x + window_width, y + window_height


class CopyBlend:
    """Copies objects of the batch to random places of its images.

    A copy may hide other objects wholly; their boxes stay, as in DEIMv2.
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
            kind: blend a copy with what lies below it, or cover that.
            area_threshold: least area of an object that is copied, in square pixels of the batch's images.
            num_objects: copies an image; fewer only if the batch has not so many objects.
            with_expand: copy some of what surrounds an object too; its box stays the object's.
            expand_ratios: how much at each side, as a part of the object's width or height, least and most.

        Raises:
            ConfigError: for a value out of its range.
        """
        for name, value, sound, expected in (
            ("copyblend_type", kind, kind in ("blend", "paste"), "'blend' or 'paste'"),
            ("area_threshold", area_threshold, area_threshold > 0, "square pixels, more than 0"),
            ("num_objects", num_objects, num_objects >= 1, "at least 1"),
            (
                "expand_ratios",
                expand_ratios,
                len(expand_ratios) == 2 and 0 <= expand_ratios[0] <= expand_ratios[1],
                "two numbers from 0, the smaller first",
            ),
        ):
            if not sound:
                raise ConfigError(f"BatchImageCollateFunction.{name} is {value!r}, expected {expected}")
        self.weights = BLEND_RANGE if kind == "blend" else (1.0, 1.0)
        self.area_threshold = area_threshold
        self.num_objects = num_objects
        self.expand_ratios = (expand_ratios[0], expand_ratios[1]) if with_expand else (0.0, 0.0)

    def __call__(
        self, images: Tensor, targets: list[Target], fields: Sequence[str], rng: np.random.Generator
    ) -> list[Target]:
        """Copy objects into every image, all of them as they were before; arguments and result as in `mixup`."""
        height, width = images.shape[-2:]
        size = np.array([width, height, width, height], float)
        objects = {name: torch.cat([_rows(target, name) for target in targets]) for name in fields}
        owners = np.repeat(np.arange(len(targets)), [len(target["boxes"]) for target in targets])
        boxes_px = _in_pixels(objects["boxes"], size)  # [N, 4]
        large = np.flatnonzero((boxes_px[:, 2:] - boxes_px[:, :2]).prod(1) >= self.area_threshold)
        if not len(large):
            return targets
        copies: list[_Copy] = []
        result = []
        for number, target in enumerate(targets):
            chosen = rng.choice(large, min(self.num_objects, len(large)), replace=False)
            moved = []
            for index in chosen:
                copy, box_px = self._copy(images[owners[index]], boxes_px[index], images[number], rng)
                copies.append(copy)
                moved.append(box_px)
            added = {name: values[chosen] for name, values in objects.items()}
            added["boxes"] = _relative(np.stack(moved), size, target["boxes"].dtype)
            result.append(_joined(target, added, fields))
        for copy in copies:  # only now, so that no copy shows another
            copy.place.lerp_(copy.patch, copy.weight)
        return result

    def _copy(
        self, source: Tensor, box_px: np.ndarray, target: Tensor, rng: np.random.Generator
    ) -> tuple[_Copy, np.ndarray]:
        """Take a patch around an object, for a random place in another image.

        Args:
            source: `[3, H, W]`, the image with the object.
            box_px: `[4]`, the object's box, xyxy in pixels.
            target: `[3, H, W]`, the image that gets the patch; it is not changed yet.
            rng: source of random numbers.

        Returns:
            The patch, and the box at its new place.
        """
        height, width = source.shape[-2:]
        window = self._window(box_px, width, height, rng)
        place = _random_place(window, width, height, rng)
        patch = source[(slice(None), *_slices(window))].clone()
        copy = _Copy(target[(slice(None), *_slices(place))], patch, rng.uniform(*self.weights))
        return copy, box_px + np.tile(np.subtract(place[:2], window[:2]), 2)

    def _window(self, box_px: np.ndarray, width: int, height: int, rng: np.random.Generator) -> Window:
        """Return the pixels to copy for an object."""
        margin = rng.uniform(*self.expand_ratios) * (box_px[2:] - box_px[:2])
        low = np.floor(box_px[:2] - margin + _SLACK_PX).clip(0)
        high = np.ceil(box_px[2:] + margin - _SLACK_PX).clip(max=[width, height])
        return (*low.astype(int).tolist(), *high.astype(int).tolist())
