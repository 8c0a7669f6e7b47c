"""An image file of a data set that is decoded when its pixels are needed."""

from __future__ import annotations

from ..transforms.pixels import Pixels
from .decoding import ImageError
from .image_policy import ImagePolicy


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
