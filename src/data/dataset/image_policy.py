"""Handling of images that cannot be read, and the log lines about images that can."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

import numpy as np

from ...core.errors import DataError
from ...core.fault_lists import FAULTS_SHOWN, listed
from ...runtime.log import logger
from ..transforms.pixels import Pixels
from .decoding import (
    ImageChangedError,
    ImageError,
    ImageSizeError,
    inspect_image,
    inspect_reduced,
    load_image,
)
from .image_cache import Entry, ImageCache, Key
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
        cache: ImageCache | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            images: images to read.
            bad_images: fraction of them that may be unreadable, from 0 to below 1; None if it is not set.
            bit_depth: number of bits that the samples of 16-bit files use; None means 16.
            cache: cache of decoded images.
        """
        self.images = images
        self.bad_images = bad_images
        self.bit_depth = bit_depth
        self.cache = cache
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

    def replacement(self, rng: np.random.Generator) -> int:
        """Draw the position of an image that replaces an unreadable one."""
        return int(rng.integers(len(self.images)))

    def reject(self, index: int, error: ImageError) -> None:
        """Count an image as unreadable.

        Args:
            index: position of the image.
            error: reason.

        Raises:
            ImageError: if no image may be unreadable; and always if labels or files were changed.
            DataError: if too many images are unreadable.
        """
        # the image is readable, but its labels are wrong or somebody changes the data
        is_changed = isinstance(error, (ImageSizeError, ImageChangedError))
        if is_changed or not self.bad_images:
            raise error
        self.flags.add(index, ImageFlag.UNREADABLE)
        self.limit(f"; the last: {error}")

    def decode(self, index: int, reduction: int = 1) -> Pixels:
        """Decode an image, or take it from the cache, and record its flags.

        Args:
            index: position of the image.
            reduction: factor by which the sides may be reduced: 1, 2, 4 or 8.

        Raises:
            ImageError: if the file cannot be read.
        """
        self.flags.begin(index)
        if self.cache is None:
            entry, _ = self._decode(index, reduction)
        else:
            entry = self._cached(self.cache, index, reduction)
        self.flags.add(index, entry.flags)
        return entry.pixels

    def _cached(self, cache: ImageCache, index: int, reduction: int) -> Entry:
        path = self.images.path(index)
        key = Key(
            index,
            str(path),
            self.images.size(index),
            self.bit_depth,
            reduction,
        )
        try:
            status = os.stat(path)
        except OSError:  # decoding reports the reason
            entry, _ = self._decode(index, reduction)
            return entry
        cached = cache.get(key, status)
        if cached is not None:
            self.images.check_unchanged(index, status)
            return cached
        entry, opened = self._decode(index, reduction)
        cache.put(key, opened, entry)
        return entry

    def _decode(
        self, index: int, reduction: int
    ) -> tuple[Entry, os.stat_result]:
        """Return a decoded image, and the status that its file had when it was opened."""
        opened: list[os.stat_result] = []

        def check(now: os.stat_result) -> None:
            opened.append(now)
            self.images.check_unchanged(index, now)

        pixels, flags = inspect_reduced(
            self.images.path(index),
            self.images.size(index),
            check,
            bit_depth=self.bit_depth,
            reduction=reduction,
        )
        return Entry(pixels, flags), opened[0]

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
