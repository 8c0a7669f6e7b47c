"""Colour transforms. All of them multiply one 3 x 4 matrix, which `Sample.render` applies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import register
from .layers import Layers
from .sample import GREY_WEIGHTS, Sample

_GREY_AXIS_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
"""The cross product with the grey axis (1, 1, 1) / sqrt(3)."""


@register()
class RandomPhotometricDistort:
    """Randomly change brightness, contrast, saturation, hue and channel order (SSD; torchvision v2).

    Each step has its own random draw.

    The steps are combined into one matrix. Values are therefore clipped once at the end, not after each step,
    and the hue is rotated around the grey axis of RGB, not on the HSV cone; docs/decisions/0006 has the
    measured difference.

    >>> image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    >>> sample = Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))
    >>> RandomPhotometricDistort(brightness=(0.5, 0.5), p=1.0)(sample)
    >>> rendered, _ = sample.render()
    >>> rendered.unique().tolist()
    [50]
    """

    def __init__(
        self,
        brightness: Sequence[float] = (0.875, 1.125),
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: Sequence[float] = (-0.05, 0.05),
        p: float = 0.5,
    ) -> None:
        """Store the ranges.

        Args:
            brightness: minimum and maximum factor.
            contrast: minimum and maximum factor around the mean grey value.
            saturation: minimum and maximum factor around the grey value of each pixel.
            hue: minimum and maximum rotation, as a fraction of the colour circle.
            p: probability of each step.
        """
        if not 0 <= p <= 1:
            raise ConfigError(
                f"RandomPhotometricDistort.p is {p}, expected 0 to 1"
            )
        for name, pair in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
            ("hue", hue),
        ):
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ConfigError(
                    f"RandomPhotometricDistort.{name} is {list(pair)}, expected two numbers, the "
                    "smaller first"
                )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = p

    def __call__(self, sample: Sample) -> None:
        """Draw the steps and combine them."""
        rng = sample.rng
        use = rng.random(5) < self.p
        contrast_first = rng.random() < 0.5
        values = []
        ranges = (self.brightness, self.contrast, self.saturation, self.hue)
        for (low, high), fraction in zip(ranges, rng.random(4)):
            values.append(low + (high - low) * fraction)
        order = rng.permutation(3)
        if not use.any():
            return

        def combine(sample: Sample) -> None:
            colour = (
                sample.colour if sample.colour is not None else np.eye(3, 4)
            )
            if use[0]:
                colour = colour * values[0]
            if use[1] and contrast_first:
                colour = adjust_contrast(colour, values[1], mean_rgb(sample))
            if use[2]:
                colour = saturation_matrix(values[2]) @ colour
            if use[3]:
                colour = hue_matrix(values[3]) @ colour
            if use[1] and not contrast_first:
                colour = adjust_contrast(colour, values[1], mean_rgb(sample))
            if use[4]:
                colour = colour[order]
            sample.colour = colour

        # only contrast needs the pixels, which may not be decoded yet
        sample.when_decoded(combine)


def mean_rgb(sample: Sample) -> np.ndarray:
    """Return the mean colour of an image, `[3]` in 0..255; large images and mosaics are subsampled.

    >>> image = torch.full((3, 20, 40), 7, dtype=torch.uint8)
    >>> mean_rgb(Sample(image, np.zeros((0, 4)), {}, {}, np.random.default_rng(0))).tolist()
    [7.0, 7.0, 7.0]
    """
    if isinstance(sample.source, Layers):
        return sample.source.mean_rgb()
    image = sample.image
    shorter_side = min(image.shape[1:])
    step = min(4, max(1, shorter_side // 120))
    pixels = image[:, ::step, ::step]
    return pixels.float().mean((1, 2)).double().numpy()


def adjust_contrast(
    colour: np.ndarray, factor: float, mean: np.ndarray
) -> np.ndarray:
    """Scale a colour matrix around the grey value of the mean colour that it produces.

    >>> adjust_contrast(np.eye(3, 4), 0.5, np.full(3, 100.0))[0].tolist()
    [0.5, 0.0, 0.0, 50.0]
    """
    mixed_mean = colour[:, :3] @ mean + colour[:, 3]
    grey = GREY_WEIGHTS @ mixed_mean
    scaled = colour * factor
    scaled[:, 3] += (1 - factor) * grey
    return scaled


def saturation_matrix(factor: float) -> np.ndarray:
    """Return the `[3, 3]` matrix that scales colours around their grey value.

    >>> (saturation_matrix(0.0) @ np.full(3, 80.0)).round(6).tolist()
    [80.0, 80.0, 80.0]
    """
    to_grey = np.outer(np.ones(3), GREY_WEIGHTS)
    return factor * np.eye(3) + (1 - factor) * to_grey


def hue_matrix(turn: float) -> np.ndarray:
    """Return the `[3, 3]` matrix that rotates colours around the grey axis (Rodrigues' formula).

    >>> (hue_matrix(1 / 3) @ np.array([255.0, 0.0, 0.0])).round().astype(int).tolist()
    [0, 255, 0]

    Args:
        turn: angle as a fraction of the full circle.
    """
    angle = 2 * math.pi * turn
    cos = math.cos(angle)
    sin = math.sin(angle)
    along_axis = (1 - cos) / 3 * np.ones((3, 3))
    return cos * np.eye(3) + sin * _GREY_AXIS_CROSS + along_axis
