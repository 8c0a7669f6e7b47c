"""The check that two engines find the same: on which images, and how far predictions may differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..core.errors import ConfigError, DataError, ExportError
from ..data.dataset.synthetic import draw_scene
from ..runtime.log import logger
from .detector import Detector, Readable
from .detector_evaluation import open_labelled_images
from .prediction import Prediction
from .sources import image_files

BOX_TOLERANCE_PX = 1.0
"""Pixels of the image by which a side of a box may differ."""

SCORE_TOLERANCE = 0.01

MIN_COMPARED = 10
"""Detections of an image that are compared where fewer reach the threshold."""

BATCH_SIZES = (1, 2, 5)
"""Sizes of the batches in which images are compared, in turn."""

Item = TypeVar("Item")


class Difference(NamedTuple):
    """Difference between the predictions of two detectors for one image."""

    name: str
    """Name of the image."""
    compared: int
    """Number of detections that were compared."""
    box_px: float
    """Largest difference of a side in pixels; infinite if a detection has no partner."""
    score: float
    """Largest difference of a score; infinite if a detection has no partner."""

    @property
    def relative(self) -> float:
        """The larger of both, in tolerances; above 1 they disagree."""
        return max(self.box_px / BOX_TOLERANCE_PX, self.score / SCORE_TOLERANCE)


def check_agreement(
    reference: Detector, exported: Detector, images: Sequence[Readable], names: Sequence[str]
) -> list[Difference]:
    """Run images through both, in batches of all `BATCH_SIZES`, and compare what they find.

    Args:
        reference: the detector that was exported.
        exported: the same from the file, by its own metadata.
        images: any kind.
        names: names of the images, for messages.

    Returns:
        The difference on each image; images that were repeated to fill the batches are listed as often.

    Raises:
        ExportError: if they disagree on one, with the worst; or if preprocessing, classes or threshold are
            not the same.
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
    expected = _repeated_to_fill_batches(_predict_all(reference, images, batch_size=8))
    differences = [
        compare_predictions(one, other, reference.threshold, name)
        for one, other, name in zip(expected, found, _repeated_to_fill_batches(names), strict=True)
    ]
    worst = max(differences, key=lambda difference: difference.relative)
    if worst.relative > 1:
        bad = sum(difference.relative > 1 for difference in differences)
        raise ExportError(
            f"{exported.meta['file']} does not find what its model finds: {bad} of {len(repeated)} images "
            f"differ, worst {worst.name}, where a box "
            f"differs by {worst.box_px:.3g} pixels ({BOX_TOLERANCE_PX:g} allowed) and a score by "
            f"{worst.score:.3g} ({SCORE_TOLERANCE:g} allowed)"
        )
    logger.info(
        "%d images agree in batches of %s: %d detections, boxes within %.2g pixels, scores within %.2g "
        "(worst image: %s)",
        len(images),
        ", ".join(map(str, sorted(tried_sizes))),
        sum(difference.compared for difference in differences),
        max(difference.box_px for difference in differences),
        max(difference.score for difference in differences),
        worst.name,
    )
    return differences


def _predict_all(detector: Detector, images: Sequence[Readable], batch_size: int) -> list[Prediction]:
    """Return all detections in each image, whatever their score."""
    found = detector.predict(images, threshold=0.0, batch_size=batch_size)
    return found if isinstance(found, list) else [found]


def _check_same_settings(reference: Detector, exported: Detector) -> None:
    """Make sure that both prepare images equally and have the same classes and threshold."""
    settings = {
        "preprocessing": (reference.preprocessing.ops, exported.preprocessing.ops),
        "classes": (reference.classes, exported.classes),
        "threshold": (reference.threshold, exported.threshold),
    }
    differing = [
        f"{key} is {theirs}, not {ours}" for key, (ours, theirs) in settings.items() if ours != theirs
    ]
    if differing:
        raise ExportError(f"{exported.meta['file']} says something else about itself: {'; '.join(differing)}")


def _repeated_to_fill_batches(items: Sequence[Item]) -> list[Item]:
    """Return a list that fills at least one batch of each size; the first items are repeated if need be."""
    return list(islice(cycle(items), max(len(items), sum(BATCH_SIZES))))


def compare_predictions(
    reference: Prediction, other: Prediction, threshold: float, name: str = ""
) -> Difference:
    """Compare what two detectors found in an image, whatever the order.

    The reference's detections from `threshold` on, or its `MIN_COMPARED` best if these are fewer, are each
    given a partner of their class among all of the other's, at the least total difference; and so the other
    way round, so that nothing is lost and nothing is added. Ranks do not count: among nearly equal scores
    they are random, and so is which detections are the last of the list.

    Args:
        reference: all detections, whatever their score.
        other: the same of the other detector.
        threshold: minimum score of detections that must have a partner.
        name: name of the image.
    """
    forward = _distances(reference, other, threshold)
    backward = _distances(other, reference, threshold)
    box_px, score = np.concatenate([forward, backward]).max(0, initial=0.0).tolist()
    return Difference(name, len(forward), box_px, score)


def _distances(one: Prediction, other: Prediction, threshold: float) -> np.ndarray:
    """Return (pixels, score) between each detection of `one` that counts and its partner, `[n, 2]`.

    Both are infinite for a detection without a partner.
    """
    best_first = np.argsort(-one.scores, kind="stable")
    count = max(int((one.scores >= threshold).sum()), min(MIN_COMPARED, len(one)))
    rows = best_first[:count]
    box_px = np.abs(one.boxes[rows][:, None] - other.boxes[None]).max(-1, initial=0.0)  # [n, R]
    score = np.abs(one.scores[rows][:, None] - other.scores[None])
    is_other_class = one.labels[rows][:, None] != other.labels[None]
    in_tolerances = np.maximum(box_px / BOX_TOLERANCE_PX, score / SCORE_TOLERANCE)
    cost = np.where(is_other_class, 1e9, np.minimum(in_tolerances, 1e6))
    matched, partners = linear_sum_assignment(cost)
    differences = np.column_stack([box_px[matched, partners], score[matched, partners]])
    result = np.full((count, 2), np.inf)
    result[matched] = np.where(is_other_class[matched, partners][:, None], np.inf, differences)
    return result


def images_for_check(detector: Detector, folder: Path | None, count: int) -> tuple[list[Readable], list[str]]:
    """Choose images to compare two engines on.

    They come from a folder, else from the validation data of the checkpoint, else they are synthetic.

    Args:
        detector: names the validation data; synthetic images have its input size.
        folder: folder of images; None for the validation data.
        count: maximum number of images, spread evenly over the folder.

    Returns:
        Images and their names.

    Raises:
        DataError: if the folder has no images.
        ConfigError: if `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"--count is {count}, expected at least 1")
    files = image_files(folder) if folder is not None else _validation_files(detector)
    if files:
        chosen: list[Readable] = [
            files[i] for i in np.unique(np.linspace(0, len(files) - 1, count).round().astype(int))
        ]
        logger.info(
            "compared on %d of %d images of %s",
            len(chosen),
            len(files),
            folder or "the validation data that the checkpoint names",
        )
        return chosen, [str(file) for file in chosen]
    logger.info(
        "compared on %d drawn images: the checkpoint's validation data is not here; --images DIR takes "
        "others",
        count,
    )
    rng = np.random.default_rng(0)
    side = max(detector.preprocessing.input_size)
    scenes: list[Readable] = [draw_scene(rng, side, empty_share=0).image for _ in range(count)]
    return scenes, [f"drawn image {number}" for number in range(1, count + 1)]


def _validation_files(detector: Detector) -> list[Path]:
    """Return the images of the validation data that the checkpoint names; none if it is not here."""
    try:
        dataset = open_labelled_images(detector)
    except (ConfigError, DataError):
        return []
    return [Path(dataset.img_folder) / dataset.labels.file_name(i) for i in range(len(dataset))]
