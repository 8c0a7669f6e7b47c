"""Inputs of a detector as an iterable of images: one image, several, a folder or a video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from PIL import Image
from torch import Tensor

from ..core.errors import DataError
from ..runtime.log import logger
from .reading import LabelledFile, Readable
from .sources import VIDEO_SUFFIXES, Source, Video, image_files

_SINGLE = (Image.Image, LabelledFile, bytes, bytearray, Mapping)
"""Iterable objects that are not a collection of images."""


class Inputs(NamedTuple):
    """Images to predict."""

    images: Iterable[Readable]
    is_single: bool
    """Whether a single image was given, so that a single prediction is returned."""


def as_images(
    given: Readable | Iterable[Readable], *, skip_errors: bool = False
) -> Inputs:
    """Return the argument of `Detector.predict` as images.

    The images of a folder are those in and below it, by name. A video gives its frames.

    Args:
        given: an image; an iterable of images; an array or tensor `[N, ...]`; or the path of a folder or
            video.
        skip_errors: log a warning about missing frames of a video instead of raising an error.

    Raises:
        DataError: if a folder has no image files, or a video cannot be opened. Frames that are missing at its
            end raise the error after the frames before them.
        ConfigError: for a video, if OpenCV is not installed.

    Example:
        >>> len(list(as_images("images").images)), as_images("image.jpg").is_single
        (8, True)
    """
    if isinstance(given, str | Path):
        return _from_path(given, skip_errors=skip_errors)
    if isinstance(given, (np.ndarray, Tensor)):
        # iterating over an array or tensor gives its images
        is_single = given.ndim < 4
    else:
        # an object that is not an image and not a collection of images is refused as a single image
        is_single = isinstance(given, _SINGLE) or not isinstance(
            given, Iterable
        )
    if is_single:
        return Inputs([cast("Readable", given)], is_single=True)
    return Inputs(cast("Iterable[Readable]", given), is_single=False)


def _from_path(path: str | Path, *, skip_errors: bool) -> Inputs:
    place = Path(path)
    if place.is_dir():
        return Inputs([*image_files(place)], is_single=False)
    if place.suffix.lower() in VIDEO_SUFFIXES and place.is_file():
        video = Video(Source(place, is_video=True))
        return Inputs(_frames(video, skip_errors), is_single=False)
    return Inputs([path], is_single=True)


def _frames(video: Video, skip_errors: bool) -> Iterator[Tensor]:
    """Yield the frames of a video, and report missing ones."""
    yield from video
    if video.fault is not None and skip_errors:
        logger.warning("%s", video.fault)
    elif video.fault is not None:
        raise DataError(video.fault)
