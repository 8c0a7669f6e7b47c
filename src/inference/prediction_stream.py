"""From a stream of images to a stream of predictions: batches, tiles, and images that have an error.

This is separate from `Detector`, which only adds the computation for one batch: the functions here know
neither an engine nor classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeAlias

from torch import Tensor

from ..core.errors import NumericsError
from ..data.dataset.decoding import ImageError
from .prediction import Prediction
from .reading import ReadImage
from .tiling import Tiling, predict_tiled

Errors: TypeAlias = Literal["raise", "skip"]
"""Handling of an image without a prediction: raise the error, or keep it in `Prediction.error`."""

PredictBatch: TypeAlias = Callable[[Sequence[Tensor]], list[Prediction]]
"""Function that predicts a batch of images `[3, H, W]` uint8."""

MAX_LISTED_FILES = 8
"""Maximum number of files that an error message names."""


class ImagePrediction(NamedTuple):
    """An image and its prediction."""

    image: Tensor
    """`[3, H, W]` uint8, RGB."""
    prediction: Prediction


def usable_images(
    images: Iterator[ReadImage],
    errors: Errors,
    unreadable: list[ImageError] | None,
) -> Iterator[ReadImage]:
    """Yield images; raise, keep or list the errors of those that have one.

    Example:
        >>> from src.inference.reading import read_ahead
        >>> read = read_ahead(["image.jpg", "missing.jpg"], ahead=8)
        >>> unreadable = []
        >>> [image.source for image in usable_images(read, "raise", unreadable)], len(unreadable)
        (['image.jpg'], 1)
    """
    for image in images:
        if unreadable is not None and isinstance(image.error, ImageError):
            unreadable.append(image.error)
        elif image.error is not None and errors == "raise":
            raise image.error
        else:
            yield image
        del image  # only the caller keeps it


def stream_predictions(
    chunks: Iterator[list[ReadImage]], predict: PredictBatch, errors: Errors
) -> Iterator[ImagePrediction]:
    """Yield the predictions of batches of images, some of which may have errors.

    Example:
        >>> from src.inference import Detector
        >>> from src.inference.reading import batches, read_ahead
        >>> detector = Detector("best.pth", device="cpu")
        >>> read = read_ahead(["image.jpg", "missing.jpg"], ahead=8)
        >>> found = stream_predictions(batches(read, size=8), detector.predict, "skip")
        >>> [prediction.error for _, prediction in found]
        [None, 'image missing.jpg cannot be read: No such file or directory']
    """
    for chunk in chunks:
        good = [image for image in chunk if image.error is None]
        found = iter(_predict_each(good, predict, errors) if good else [])
        for image in chunk:
            if image.error is None:
                prediction = replace(next(found), source=image.source)
            else:
                reason = str(image.error) or type(image.error).__name__
                prediction = Prediction.failed(reason, source=image.source)
            yield ImagePrediction(image.image, prediction)
        # so that they are gone while the next ones are read
        del chunk, good, image


def _predict_each(
    images: Sequence[ReadImage], predict: PredictBatch, errors: Errors
) -> list[Prediction]:
    """Return the predictions of a batch.

    If the model gives NaN and errors are skipped, each image is computed alone, so that only the images with
    NaN lose their predictions.
    """
    try:
        return predict([image.image for image in images])
    except NumericsError as error:
        reason = f"{error}{_listed_files(image.source for image in images)}"
        if errors == "raise":
            raise NumericsError(reason) from None
    if len(images) == 1:
        height, width = images[0].image.shape[1:]
        return [Prediction.failed(reason, (width, height))]
    return [_predict_each([image], predict, errors)[0] for image in images]


def predict_with_tiles(
    tiling: Tiling, predict: PredictBatch, size: int, images: Sequence[Tensor]
) -> list[Prediction]:
    """Return the predictions of images and their tiles.

    Example:
        >>> from src.inference import Detector
        >>> detector = Detector("best.pth", device="cpu")
        >>> images = [torch.zeros(3, 128, 256, dtype=torch.uint8)]
        >>> [one.size for one in predict_with_tiles(Tiling(64), detector.predict, 4, images)]
        [(256, 128)]
    """
    return [predict_tiled(image, tiling, predict, size) for image in images]


def _listed_files(sources: Iterable[str | None]) -> str:
    """Return the files of a batch as the end of a message; an empty string if there are none."""
    files = [source for source in sources if source is not None]
    if not files:
        return ""
    more = ""
    if len(files) > MAX_LISTED_FILES:
        more = f" and {len(files) - MAX_LISTED_FILES} more"
    return f"; files of the batch: {', '.join(files[:MAX_LISTED_FILES])}{more}"
