"""An image file of a data set that is decoded when its pixels are needed, and its replacement."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from ..transforms.pixels import Pixels
from .decoding import ImageError
from .image_policy import ImagePolicy

T = TypeVar("T")


class ImageFile:
    """An image of a data set as a source of pixels (`transforms.pixels.PixelSource`)."""

    def __init__(
        self, policy: ImagePolicy, index: int, *, may_reduce: bool
    ) -> None:
        """Store the arguments; the file is not opened.

        Args:
            policy: images of the data set.
            index: position of the image.
            may_reduce: decode at a reduced size if that is asked for; otherwise always the whole image.
        """
        self.policy = policy
        self.index = index
        self.may_reduce = may_reduce
        self.size = policy.images.size(index)
        self.error: ImageError | None = None
        """The reason why the file could not be read, after `decode` raised it."""

    def decode(self, reduction: int) -> Pixels:
        """Decode the image (`PixelSource.decode`)."""
        if not self.may_reduce:
            reduction = 1
        try:
            return self.policy.decode(self.index, reduction)
        except ImageError as error:
            self.error = error
            raise


def first_readable(
    file: ImageFile, rng: np.random.Generator, read: Callable[[ImageFile], T]
) -> T:
    """Read an image, or random others of its data set until one is readable.

    Args:
        file: the image.
        rng: random generator, which only draws the replacements here.
        read: function that decodes the image it is given. It may also raise errors of other images, which are
            not replaced here.

    Returns:
        The result of `read`.

    Raises:
        ImageError: as for `ImagePolicy.reject`; and any of another image.
        DataError: as for `ImagePolicy.reject`.
    """
    while True:
        try:
            return read(file)
        except ImageError as error:
            if error is not file.error:
                raise
            file.policy.reject(file.index, error)
        position = file.policy.replacement(rng)
        file = ImageFile(file.policy, position, may_reduce=file.may_reduce)
