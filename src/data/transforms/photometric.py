"""Transforms of colour. All of them multiply one 3 x 4 matrix that `Sample.render` applies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ...core.errors import ConfigError
from ...core.registry import register
from .sample import GREY_WEIGHTS, Sample

_GREY_AXIS_CROSS = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
"""The cross product with the grey axis (1, 1, 1) / sqrt(3)."""


@register()
class RandomPhotometricDistort:
    """Brightness, contrast, saturation, hue and channel order, each with its own coin (SSD; torchvision v2).

    The steps are joined into one matrix, so values are clipped once at the end and not after each step, and the hue
    turns around the grey axis of RGB and not on the HSV cone; docs/decisions/0006 has the measured difference.
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
            brightness: factor, least and most.
            contrast: factor around the mean grey value.
            saturation: factor around each pixel's grey value.
            hue: turn of the colour circle, as a part of it.
            p: probability of each step.
        """
        if not 0 <= p <= 1:
            raise ConfigError(f"RandomPhotometricDistort.p is {p}, expected 0 to 1")
        for name, pair in (
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
            ("hue", hue),
        ):
            if len(pair) != 2 or pair[0] > pair[1]:
                raise ConfigError(
                    f"RandomPhotometricDistort.{name} is {list(pair)}, expected two numbers, the smaller first"
                )
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = p

    def __call__(self, sample: Sample) -> None:
        """Draw and join the steps."""
        rng = sample.rng
        use = rng.random(5) < self.p
        contrast_first = rng.random() < 0.5
        values = [
            low + (high - low) * u
            for (low, high), u in zip(
                (self.brightness, self.contrast, self.saturation, self.hue), rng.random(4)
            )
        ]
        order = rng.permutation(3)
        if not use.any():
            return
        colour = sample.colour if sample.colour is not None else np.eye(3, 4)
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


def mean_rgb(sample: Sample) -> np.ndarray:
    """Return the mean colour of an image, `[3]` in 0..255; of large ones from every fourth pixel of every fourth row."""
    step = min(4, max(1, min(sample.image.shape[1:]) // 120))
    return sample.image[:, ::step, ::step].float().mean((1, 2)).double().numpy()


def adjust_contrast(colour: np.ndarray, factor: float, mean: np.ndarray) -> np.ndarray:
    """Scale a colour matrix around the grey value that the image's mean colour becomes under it."""
    grey = GREY_WEIGHTS @ (colour[:, :3] @ mean + colour[:, 3])
    scaled = colour * factor
    scaled[:, 3] += (1 - factor) * grey
    return scaled


def saturation_matrix(factor: float) -> np.ndarray:
    """Return the `[3, 3]` matrix that scales colours around their grey value."""
    return factor * np.eye(3) + (1 - factor) * np.outer(np.ones(3), GREY_WEIGHTS)


def hue_matrix(turn: float) -> np.ndarray:
    """Return the `[3, 3]` matrix that turns colours around the grey axis by a part of the circle (Rodrigues' formula)."""
    angle = 2 * math.pi * turn
    return (
        math.cos(angle) * np.eye(3)
        + math.sin(angle) * _GREY_AXIS_CROSS
        + (1 - math.cos(angle)) / 3 * np.ones((3, 3))
    )
