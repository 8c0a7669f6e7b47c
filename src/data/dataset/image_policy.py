"""What happens with images that cannot be read, and what is logged about images that can."""

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
    MARK_TEXTS,
    ImageChangedError,
    ImageError,
    ImageSizeError,
    Mark,
    inspect_image,
    load_image,
)
from .image_flags import ImageFlags
from .listed_images import ListedImages

BAD_IMAGES = 0.001
"""Share of a training set's images that may be unreadable."""

_LEVELS = {Mark.SEVERAL_FRAMES: logging.WARNING}
"""Marks whose images are reported louder than with INFO."""


class ImagePolicy:
    """Reads images, counts those that cannot be read, and replaces them as long as there are few."""

    def __init__(self, images: ListedImages, bad_images: float | None) -> None:
        """Store the images and the share of them, 0 to below 1, that may be unreadable; None for nothing said."""
        self.images = images
        self.bad_images = bad_images
        self.flags = ImageFlags(len(images))

    def allow(self) -> None:
        """Replace images that cannot be read, as training may: `BAD_IMAGES` of them if the settings give no share."""
        if self.bad_images is None:
            self.bad_images = BAD_IMAGES

    def refuse(self) -> None:
        """Let the first image that cannot be read end the run, whatever the settings say."""
        self.bad_images = 0

    @property
    def tolerated(self) -> int:
        """Number of images that may be unreadable."""
        return int((self.bad_images or 0) * len(self.images) + 1e-9)

    def load(self, index: int, rng: np.random.Generator) -> tuple[int, Tensor]:
        """Decode an image, or others that `rng` chooses until one is sound; return which it is.

        Raises:
            ImageError: if it cannot be read and no image may be unreadable; if labels or files were changed, in any case.
            DataError: if too many images are unreadable.
        """
        while True:
            self.flags.begin(index)
            try:
                image, marks = inspect_image(
                    self.images.path(index),
                    self.images.size(index),
                    partial(self.images.check_unchanged, index),
                )
            except (ImageSizeError, ImageChangedError):
                raise  # the file is sound: the labels, or those who write, are not to be trusted
            except ImageError as error:
                if not self.bad_images:
                    raise
                self.flags.add(index, Mark.UNREADABLE)
                self.limit(f"; the last: {error}")
                index = int(rng.integers(len(self.images)))
            else:
                self.flags.add(index, marks)
                return index, image

    def limit(self, detail: str = "") -> None:
        """Raise `DataError` if more images are unreadable than may be; `detail` follows the list of them."""
        bad = self.flags.images(Mark.UNREADABLE)
        if len(bad) > self.tolerated:
            raise DataError(
                f"{len(bad)} of {len(self.images)} images of {self.images.labels.path} cannot be read, more than the share of "
                f"{self.bad_images or 0:g} that bad_images tolerates: {listed([str(self.images.path(i)) for i in bad])}{detail}; "
                "repair them, or raise dataset.bad_images"
            )

    def unreadable(self) -> list[int]:
        """Return the positions of the images that could not be read so far."""
        return self.flags.images(Mark.UNREADABLE)

    def remember_unreadable(self, indices: Sequence[int]) -> None:
        """Count images as unreadable that an earlier part of the run could not read; they are not reported again."""
        for index in indices:
            self.flags.add(index, Mark.UNREADABLE)
        self.flags.take_news(Mark.UNREADABLE)

    def report(self) -> None:
        """Log what is new since the last time about images that were decoded; all ranks call this together.

        Raises:
            DataError: if the ranks together found more unreadable images than `bad_images` allows.
        """
        self.flags.join_ranks()
        bad = self.flags.take_news(Mark.UNREADABLE)
        for index in bad[:FAULTS_SHOWN]:
            logger.warning("%s; another image takes its place", self._reason(index))
        if bad:
            logger.warning(
                "%s: images that cannot be read: %d, tolerated are %d (bad_images: %g)",
                self.images.labels.path,
                len(self.unreadable()),
                self.tolerated,
                self.bad_images,
            )
        for mark in MARK_TEXTS:
            for line in self.describe_news(mark):
                logger.log(_LEVELS.get(mark, logging.INFO), "%s", line)
        self.limit()

    def describe_news(self, mark: Mark) -> list[str]:
        """Return a line about the images with a mark, if there are new ones; it is not returned again for them."""
        new = self.flags.take_news(mark)
        if not new:
            return []
        labels = self.images.labels
        count = len(self.flags.images(mark))
        return [f"{labels.path}: {MARK_TEXTS[mark]}: {count} (first: {labels.file_name(new[0])})"]

    def _reason(self, index: int) -> str:
        """Return why an image was unreadable: it is decoded again, because the process that found it could not report it."""
        path = self.images.path(index)
        try:
            load_image(path, self.images.size(index))
        except ImageError as error:
            return str(error)
        return f"image {path} could not be read at first, but can be now"
