"""The pixels of an image file, perhaps decoded at a reduced size, and the choice of this size."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

REDUCTIONS = (8, 4, 2)
"""Factors by which the sides of a JPEG can be reduced while it is decoded, the largest first."""


class Pixels(NamedTuple):
    """Decoded pixels; a point (x, y) of the file is at (x, y) / reduction + origin in the image."""

    image: Tensor
    """`[3, h, w]` uint8, RGB."""
    reduction: int = 1
    """Pixels of the file along each side of a pixel of the image."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Position (x, y) of the file's (0, 0) in pixels of the image, from 0 to below 1.

    It is not 0 if the image was turned and a side of the file is not a multiple of the reduction: the last
    pixels of the image as stored then extend beyond the file.
    """

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the image."""
        height, width = self.image.shape[1:]
        return width, height


class PixelSource(Protocol):
    """An image that is decoded when its pixels are needed."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the file, upright."""

    def decode(self, reduction: int) -> Pixels:
        """Decode the image, reduced by this factor, or not at all if its format has no reduced size.

        Raises:
            ImageError: if the file cannot be read.
        """


def reduction_for(scale: float) -> int:
    """Return the largest reduction that leaves as many pixels as are drawn.

    >>> reduction_for(0.5), reduction_for(0.3), reduction_for(0.51)
    (2, 2, 1)

    Args:
        scale: pixels drawn for each pixel of the file along a side; the larger one of the two sides.
    """
    for reduction in REDUCTIONS:
        if reduction * scale <= 1:
            return reduction
    return 1
