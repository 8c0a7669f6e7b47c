"""Check that two engines give the same predictions, within tolerances, on a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from ..core.counts import counted
from ..core.errors import ConfigError, DataError, ExportError
from ..data.dataset.synthetic import draw_scene
from ..ops.boxes import box_iou
from ..runtime.log import logger
from .detector import Detector
from .detector_evaluation import open_labelled_images
from .prediction import Prediction
from .reading import Readable
from .sources import image_files, spread

BOX_TOLERANCE_PX = 1.0
"""Maximum difference of a box side, in pixels of the image."""

SCORE_TOLERANCE = 0.01

MIN_COMPARED = 10
"""Minimum number of detections to compare in an image, even if fewer reach the threshold."""

BATCH_SIZES = (1, 2, 5)
"""Batch sizes of the comparison, used in turn."""

Item = TypeVar("Item")


class Difference(NamedTuple):
    """Difference between the predictions of two detectors for one image."""

    name: str
    """Name of the image."""
    compared: int
    """Number of detections that were compared."""
    box_px: float
    """Maximum difference of a box side in pixels; infinite if a detection has no match."""
    score: float
    """Maximum difference of a score; infinite if a detection has no match."""

    @property
    def relative(self) -> float:
        """The larger difference as a multiple of its tolerance; above 1 the detectors disagree."""
        return max(self.box_px / BOX_TOLERANCE_PX, self.score / SCORE_TOLERANCE)


def check_agreement(
    reference: Detector,
    exported: Detector,
    images: Sequence[Readable],
    names: Sequence[str],
) -> list[Difference]:
    """Run images through both detectors, in batches of all `BATCH_SIZES`, and compare their predictions.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> differences = check_agreement(detector, detector, ["image.jpg"], ["image.jpg"])
        >>> max(difference.relative for difference in differences) < 1
        True

    Args:
        reference: the detector that was exported.
        exported: detector loaded from the exported file.
        images: images of any kind.
        names: names of the images, for messages.

    Returns:
        The difference for each image. Images that were repeated to fill the batches are repeated here.

    Raises:
        ExportError: if they disagree on an image, with the worst image; or if preprocessing, classes or
            threshold differ.
    """
    _check_same_settings(reference, exported)
    repeated = _repeated_to_fill_batches(images)
    found: list[Prediction] = []
    tried_sizes: set[int] = set()
    for size in cycle(BATCH_SIZES):
        batch = repeated[len(found) : len(found) + size]
        if not batch:
            break
        tried_sizes.add(len(batch))
        found += _predict_all(exported, batch, batch_size=size)
    expected = _repeated_to_fill_batches(
        _predict_all(reference, images, batch_size=8)
    )
    repeated_names = _repeated_to_fill_batches(names)
    differences: list[Difference] = []
    for one, other, name in zip(expected, found, repeated_names, strict=True):
        differences.append(
            compare_predictions(one, other, reference.threshold, name)
        )
    worst = max(differences, key=lambda difference: difference.relative)
    if worst.relative > 1:
        bad = sum(difference.relative > 1 for difference in differences)
        raise ExportError(
            f"{exported.meta['file']} gives other predictions than its model: {bad} of {len(repeated)} "
            f"images differ, worst {worst.name}, where a box differs by {worst.box_px:.3g} pixels "
            f"({BOX_TOLERANCE_PX:g} allowed) and a score by {worst.score:.3g} ({SCORE_TOLERANCE:g} allowed)"
        )
    _log_agreement(len(images), sorted(tried_sizes), differences, worst)
    return differences


def _log_agreement(
    num_images: int,
    batch_sizes: Sequence[int],
    differences: Sequence[Difference],
    worst: Difference,
) -> None:
    compared = sum(difference.compared for difference in differences)
    logger.info(
        "the outputs of %s agree in batches of %s: %s, boxes within %.2g pixels, scores within %.2g "
        "(worst image: %s)",
        counted(num_images, "image"),
        ", ".join(map(str, batch_sizes)),
        counted(compared, "detection"),
        max(difference.box_px for difference in differences),
        max(difference.score for difference in differences),
        worst.name,
    )


def _predict_all(
    detector: Detector, images: Sequence[Readable], batch_size: int
) -> list[Prediction]:
    """Return all detections in each image, with any score."""
    found = detector.predict(images, threshold=0.0, batch_size=batch_size)
    return found if isinstance(found, list) else [found]


def _check_same_settings(reference: Detector, exported: Detector) -> None:
    """Check that both detectors have the same preprocessing, bit depth, classes and threshold."""
    settings = {
        "preprocessing": (
            reference.preprocessing.ops,
            exported.preprocessing.ops,
        ),
        "bit_depth": (reference.bit_depth, exported.bit_depth),
        "classes": (reference.classes, exported.classes),
        "threshold": (reference.threshold, exported.threshold),
    }
    differing = []
    for key, (ours, theirs) in settings.items():
        if ours != theirs:
            differing.append(f"{key} is {theirs}, not {ours}")
    if differing:
        raise ExportError(
            f"{exported.meta['file']} has other metadata than its model: {'; '.join(differing)}"
        )


def _repeated_to_fill_batches(items: Sequence[Item]) -> list[Item]:
    """Return a list that fills at least one batch of each size, repeating items if necessary."""
    count = max(len(items), sum(BATCH_SIZES))
    return list(islice(cycle(items), count))


def compare_predictions(
    reference: Prediction,
    other: Prediction,
    threshold: float,
    name: str = "",
) -> Difference:
    """Compare the predictions of two detectors for an image, regardless of their order.

    Each detection of the reference with a score of at least `threshold` (or its `MIN_COMPARED` best, if these
    are more) is matched with a detection of the same class of the other detector, so that the total
    difference is minimal. The same is done in the other direction, so that neither missing nor additional
    detections are overlooked. The order is ignored, because among nearly equal scores it is random.

    Example:
        >>> boxes = np.array([[10, 20, 40, 60]], np.float32)
        >>> found = Prediction(boxes, np.array([0.5]), np.array([0]), np.array([1]), ["cat"], (64, 64))
        >>> compare_predictions(found, found, threshold=0.4, name="image.jpg")
        Difference(name='image.jpg', compared=1, box_px=0.0, score=0.0)

    Args:
        reference: all detections of the reference, with any score.
        other: all detections of the other detector.
        threshold: minimum score of detections that must have a match.
        name: name of the image.
    """
    forward = _distances(reference, other, threshold)
    backward = _distances(other, reference, threshold)
    box_px, score = (
        np.concatenate([forward, backward]).max(0, initial=0.0).tolist()
    )
    return Difference(name, len(forward), box_px, score)


def mean_difference(
    reference: Prediction, other: Prediction, threshold: float
) -> float:
    """Return how much the detections of an image differ, from 0 (equal) to 1 (nothing in common).

    Each detection of the reference that `compare_predictions` would compare is matched with one of the same
    class. Its difference is 1 - IoU * (1 - difference of scores), and 1 without a match.

    Example:
        >>> boxes = np.array([[10, 20, 40, 60]], np.float32)
        >>> found = Prediction(boxes, np.array([0.5]), np.array([0]), np.array([1]), ["cat"], (64, 64))
        >>> mean_difference(found, found, threshold=0.4)
        0.0

    Args:
        reference: all detections of the reference, with any score.
        other: all detections of the other detector.
        threshold: minimum score of detections that are compared.
    """
    rows = _compared_rows(reference, threshold)
    if not len(rows) or not len(other):
        return float(len(rows) > 0)
    iou = box_iou(
        torch.from_numpy(reference.boxes[rows])[:, None],
        torch.from_numpy(other.boxes)[None],
    ).numpy()
    score = np.abs(reference.scores[rows, None] - other.scores)
    is_other_class = reference.labels[rows, None] != other.labels
    likeness = np.where(is_other_class, 0.0, iou * (1 - score))
    from scipy.optimize import linear_sum_assignment  # here: its import is slow

    matched, partners = linear_sum_assignment(-likeness)
    return float(1 - likeness[matched, partners].sum() / len(rows))


def _compared_rows(prediction: Prediction, threshold: float) -> np.ndarray:
    """Return the rows of detections to compare: those above the threshold, at least `MIN_COMPARED`."""
    best_first = np.argsort(-prediction.scores, kind="stable")
    above_threshold = int((prediction.scores >= threshold).sum())
    count = max(above_threshold, min(MIN_COMPARED, len(prediction)))
    return best_first[:count]


def _distances(
    one: Prediction, other: Prediction, threshold: float
) -> np.ndarray:
    """Return the differences (pixels, score) between detections of `one` and their matches, `[n, 2]`.

    Both are infinite for a detection without a match.
    """
    rows = _compared_rows(one, threshold)[:, None]
    count = len(rows)
    sides_px = np.abs(one.boxes[rows] - other.boxes)  # [n, R, 4]
    box_px = sides_px.max(-1, initial=0.0)  # [n, R]
    score = np.abs(one.scores[rows] - other.scores)
    is_other_class = one.labels[rows] != other.labels
    in_tolerances = np.maximum(
        box_px / BOX_TOLERANCE_PX, score / SCORE_TOLERANCE
    )
    cost = np.where(is_other_class, 1e9, np.minimum(in_tolerances, 1e6))
    from scipy.optimize import linear_sum_assignment  # here: its import is slow

    matched, partners = linear_sum_assignment(cost)
    differences = np.stack([box_px, score], axis=-1)  # [n, R, 2]
    differences[is_other_class] = np.inf
    result = np.full((count, 2), np.inf)
    result[matched] = differences[matched, partners]
    return result


def images_for_check(
    detector: Detector, folder: Path | None, count: int
) -> tuple[list[Readable], list[str]]:
    """Choose images for the comparison of two engines.

    They come from a folder, else from the checkpoint's validation data, else they are synthetic.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> images, names = images_for_check(detector, Path("images"), count=2)
        >>> names
        ['images/val_00000.jpg', 'images/val_00007.jpg']

    Args:
        detector: detector with the path of its validation data; synthetic images have its input size.
        folder: folder of images; None uses the validation data.
        count: maximum number of images, spread evenly over the folder.

    Returns:
        Images and their names.

    Raises:
        DataError: if the folder has no images.
        ConfigError: if `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"--count is {count}, expected at least 1")
    files = (
        image_files(folder)
        if folder is not None
        else _validation_files(detector)
    )
    if files:
        chosen = spread(files, count)
        logger.info(
            "compared on %d of %d images of %s",
            len(chosen),
            len(files),
            folder or "the validation data that the checkpoint names",
        )
        return [*chosen], [str(file) for file in chosen]
    logger.info(
        "compared on %s: the checkpoint's validation data was not found; --images DIR uses "
        "others",
        counted(count, "synthetic image"),
    )
    rng = np.random.default_rng(0)
    side = max(detector.preprocessing.input_size)
    scenes: list[Readable] = []
    names: list[str] = []
    for number in range(1, count + 1):
        scenes.append(draw_scene(rng, side, empty_share=0).image)
        names.append(f"synthetic image {number}")
    return scenes, names


def _validation_files(detector: Detector) -> list[Path]:
    """Return the images of the checkpoint's validation data; an empty list if it does not exist here."""
    try:
        dataset = open_labelled_images(detector)
    except (ConfigError, DataError):
        return []
    return [dataset.image_path(index) for index in range(len(dataset))]
