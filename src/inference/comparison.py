"""Pictures of ground truth and predictions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..core.counts import counted
from ..data.dataset.coco_dataset import CocoDetection
from ..detection.drawing import DrawnObjects
from ..detection.outcomes import crowd_rows, find_outcomes, rows_of
from ..detection.pairs import ImagePair, captioned_pair
from ..runtime.files import prepare_output_dir
from ..runtime.log import logger
from ..runtime.own_files import (
    picture_names,
    refuse_foreign,
    refuse_leaving,
    write_picture,
)
from .detector import Detector
from .prediction import Prediction
from .prediction_settings import PredictionSettings
from .reading import LabelledFile


def draw_comparisons(
    detector: Detector,
    dataset: CocoDetection,
    folder: Path,
    *,
    count: int,
    threshold: float | None = None,
    class_names: Mapping[int, str] | None = None,
) -> list[Path]:
    """Write one JPEG file per image: ground truth on the left, predictions on the right.

    Predictions are solid if they are correct and dashed if they are false; missed objects are dotted.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> dataset = CocoDetection("images", "annotations.json")
        >>> pictures = draw_comparisons(detector, dataset, Path("compared"), count=2, threshold=0.4)
        >>> [path.name for path in pictures]
        ['val_00000.jpg', 'val_00007.jpg']

    Args:
        detector: detector that makes the predictions.
        dataset: data set of labelled images.
        folder: folder for the pictures.
        count: number of images, spread evenly over the data set.
        threshold: minimum score of predictions in the pictures; None uses the detector's.
        class_names: class names by the detector's labels; None uses those of the data set, which must then
            have the same labels.

    Returns:
        Paths of the pictures.

    Raises:
        DataError: if images are missing or outside their folder, because pictures must not show files that
            do not belong to the data.
        NumericsError: if the model gives NaN or infinity.
    """
    if threshold is None:
        threshold = detector.threshold
    if class_names is None:
        class_names = dataset.label_names
    dataset.check_images_exist()
    count = min(count, len(dataset))
    evenly_spread = torch.linspace(0, len(dataset) - 1, count)
    indices = evenly_spread.round().int().tolist()
    names = [dataset.labels.file_name(index) for index in indices]
    folder = prepare_output_dir(folder)
    written = [folder / name for name in picture_names(names)]
    refuse_leaving(folder, written)
    refuse_foreign(written, "choose another --output")
    files = [_labelled_file(dataset, index) for index in indices]
    stream = detector.stream(files, PredictionSettings(threshold))
    for index, path, (_, prediction) in zip(indices, written, stream):
        pair = _pair(dataset, index, prediction, class_names, threshold)
        picture = captioned_pair(pair)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, Image.fromarray(picture.permute(1, 2, 0).numpy()))
    logger.info(
        "%s in %s: truth on the left, predictions with a score from %.2f on the right",
        counted(len(written), "picture"),
        folder,
        threshold,
    )
    return written


def _pair(
    dataset: CocoDetection,
    index: int,
    prediction: Prediction,
    names: Mapping[int, str],
    threshold: float,
) -> ImagePair:
    """Compare the predictions for an image with its objects, which get the labels of the predictions."""
    sample = dataset.raw_sample(index)
    label_of_name = {name: label for label, name in names.items()}
    new_labels = {}
    for label, name in dataset.label_names.items():
        # a class that the detector does not know keeps a label of its own
        new_labels[label] = label_of_name.get(name, len(names) + label)
    unknown = {
        new_labels[label]: name for label, name in dataset.label_names.items()
    }
    names = {**unknown, **names}
    labels = _relabelled(sample.fields["labels"], new_labels)
    truth = DrawnObjects.of_labels(sample.boxes, labels, names)
    found = rows_of(prediction.boxes, prediction.scores, prediction.labels)
    objects = rows_of(sample.boxes, labels, np.zeros(len(labels)))
    of_classes = [
        new_labels[label] for label in dataset.label_of_category.tolist()
    ]
    crowds = crowd_rows(dataset, index, of_classes)
    outcomes = find_outcomes(found, np.concatenate([objects, crowds]), names)
    name = dataset.labels.file_name(index)
    return ImagePair(sample.image, truth, outcomes, name, threshold)


def _relabelled(
    labels: np.ndarray, new_labels: Mapping[int, int]
) -> np.ndarray:
    """Return labels `[T]` int64 after replacing each."""
    return np.array([new_labels[label] for label in labels.tolist()], np.int64)


def _labelled_file(dataset: CocoDetection, index: int) -> LabelledFile:
    """Return the file of an image and the size that its labels refer to."""
    width, height = dataset.labels.sizes[index].long().tolist()
    return LabelledFile(dataset.image_path(index), (width, height))
