"""Handling of images that cannot be read, and the log lines about images that can."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import Tensor

from ...core.errors import DataError
from ...core.fault_lists import FAULTS_SHOWN, listed
from ...runtime.log import logger
from .decoding import (
    ImageChangedError,
    ImageError,
    ImageSizeError,
    inspect_image,
    load_image,
)
from .image_flags import ImageFlags
from .listed_images import ListedImages
from .picture import FLAG_TEXTS, ImageFlag

BAD_IMAGES = 0.001
"""Fraction of the training images that may be unreadable."""

TRIED_IMAGES = 8
"""Number of 16-bit images that are decoded before a run, to find a low range of their samples."""

_RANGES = ImageFlag.LOW_RANGE | ImageFlag.FULL_RANGE

_LEVELS = {
    ImageFlag.SEVERAL_FRAMES: logging.WARNING,
    ImageFlag.EXTRA_BANDS: logging.WARNING,
    ImageFlag.TWO_ORIENTATIONS: logging.WARNING,
    ImageFlag.LOW_RANGE: logging.WARNING,
}
"""Flags that are not logged with level INFO."""


class ImagePolicy:
    """Read images, count those that cannot be read, and replace them as long as they are few."""

    def __init__(
        self,
        images: ListedImages,
        bad_images: float | None,
        *,
        bit_depth: int | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            images: images to read.
            bad_images: fraction of them that may be unreadable, from 0 to below 1; None if it is not set.
            bit_depth: number of bits that the samples of 16-bit files use; None means 16.
        """
        self.images = images
        self.bad_images = bad_images
        self.bit_depth = bit_depth
        self.flags = ImageFlags(len(images))

    def allow(self) -> None:
        """Replace images that cannot be read, as in training.

        Up to the fraction `BAD_IMAGES` may be replaced, unless another one is set.
        """
        if self.bad_images is None:
            self.bad_images = BAD_IMAGES

    def refuse(self) -> None:
        """Raise an error for the first image that cannot be read, whatever the settings are."""
        self.bad_images = 0

    @property
    def tolerated(self) -> int:
        """Number of images that may be unreadable."""
        tolerance = (
            1e-9  # makes 0.7 * 10 round to 7 despite floating-point error
        )
        return int((self.bad_images or 0) * len(self.images) + tolerance)

    def load(self, index: int, rng: np.random.Generator) -> tuple[int, Tensor]:
        """Decode an image, or random others drawn by `rng` until one is readable.

        Returns:
            The index and the pixels of the image that was decoded.

        Raises:
            ImageError: if the image cannot be read and no image may be unreadable; and always if labels or
                files were changed.
            DataError: if too many images are unreadable.
        """
        while True:
            self.flags.begin(index)
            check = partial(self.images.check_unchanged, index)
            path = self.images.path(index)
            size = self.images.size(index)
            try:
                image, flags = inspect_image(
                    path, size, check, bit_depth=self.bit_depth
                )
            except (ImageSizeError, ImageChangedError):
                raise  # the image is readable, but its labels are wrong or somebody changes the data
            except ImageError as error:
                if not self.bad_images:
                    raise
                self.flags.add(index, ImageFlag.UNREADABLE)
                self.limit(f"; the last: {error}")
                index = int(rng.integers(len(self.images)))
            else:
                self.flags.add(index, flags)
                return index, image

    def try_deep_images(self) -> None:
        """Decode a few 16-bit images, and flag them if all their samples are low."""
        deep = self.flags.images(ImageFlag.SIXTEEN_BIT)
        step = max(1, len(deep) // TRIED_IMAGES)
        for index in deep[::step][:TRIED_IMAGES]:
            try:
                _, flags = inspect_image(
                    self.images.path(index), bit_depth=self.bit_depth
                )
            except ImageError:  # reported when training reads it
                continue
            self.flags.add(index, flags & _RANGES)

    def limit(self, detail: str = "") -> None:
        """Raise `DataError` if too many images are unreadable; `detail` follows the list of them."""
        bad = self.unreadable()
        if len(bad) > self.tolerated:
            paths = [str(self.images.path(index)) for index in bad]
            percent = 100 * (self.bad_images or 0)
            raise DataError(
                f"{len(bad)} of {len(self.images)} images of {self.images.labels.path} cannot be read, "
                f"more than bad_images allows ({percent:g} %): {listed(paths)}{detail}; "
                "repair them, or raise dataset.bad_images"
            )

    def unreadable(self) -> list[int]:
        """Return the positions of the images that could not be read so far."""
        return self.flags.images(ImageFlag.UNREADABLE)

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Flag images as unreadable that failed earlier in the run; they are not reported again."""
        for index in indices:
            self.flags.add(index, ImageFlag.UNREADABLE)
        self.flags.take_news(ImageFlag.UNREADABLE)

    def report(self) -> None:
        """Log news about images that were decoded since the last report; all ranks call this together.

        Raises:
            DataError: if the ranks together found more unreadable images than `bad_images` allows.
        """
        self.flags.join_ranks()
        bad = self.flags.take_news(ImageFlag.UNREADABLE)
        for index in bad[:FAULTS_SHOWN]:
            logger.warning(
                "%s; it is replaced by another image", self._reason(index)
            )
        if bad:
            logger.warning(
                "%s: images that cannot be read: %d, allowed: %d (bad_images: %g)",
                self.images.labels.path,
                len(self.unreadable()),
                self.tolerated,
                self.bad_images,
            )
        for flag in FLAG_TEXTS:
            for line in self.describe_news(flag):
                logger.log(_LEVELS.get(flag, logging.INFO), "%s", line)
        self.limit()

    def describe_news(self, flag: ImageFlag) -> list[str]:
        """Return a line about the images with a flag, if some of them were not reported before."""
        new = self.flags.take_news(flag)
        if not new:
            return []
        if flag == ImageFlag.LOW_RANGE and self.flags.images(
            ImageFlag.FULL_RANGE
        ):
            return []  # single images are dark, but the sensor has 16 bits
        labels = self.images.labels
        count = len(self.flags.images(flag))
        first = labels.file_name(new[0])
        return [f"{labels.path}: {FLAG_TEXTS[flag]}: {count} (first: {first})"]

    def _reason(self, index: int) -> str:
        """Return the reason why an image was unreadable.

        The image is decoded again, because workers cannot report the reason.
        """
        path = self.images.path(index)
        try:
            load_image(path, self.images.size(index), bit_depth=self.bit_depth)
        except ImageError as error:
            return str(error)
        return f"image {path} could not be read at first, but can be now"
