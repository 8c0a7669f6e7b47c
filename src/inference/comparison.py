"""Pictures of ground truth and predictions side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from ..data.dataset.coco_dataset import CocoDetection
from ..detection.drawing import DrawnObjects, draw_pair, side_by_side
from ..runtime.files import prepare_output_dir
from ..runtime.log import logger
from ..runtime.own_files import (
    picture_names,
    refuse_foreign,
    refuse_leaving,
    write_picture,
)
from .detector import Detector, LabelledFile
from .prediction_settings import PredictionSettings


def draw_comparisons(
    detector: Detector,
    dataset: CocoDetection,
    folder: Path,
    *,
    count: int,
    threshold: float,
    class_names: Mapping[int, str] | None = None,
) -> list[Path]:
    """Write one JPEG file per image: ground truth on the left, predictions on the right.

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
        threshold: minimum score of predictions in the pictures.
        class_names: class names by the detector's labels; None uses those of the data set, which must then
            have the same labels.

    Returns:
        Paths of the pictures.

    Raises:
        DataError: if images are missing or outside their folder, because pictures must not show files that
            do not belong to the data.
        NumericsError: if the model gives NaN or infinity.
    """
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
        sample = dataset.raw_sample(index)
        labels = sample.fields["labels"]
        truth = DrawnObjects.of_labels(
            sample.boxes, labels, dataset.label_names
        )
        predicted = DrawnObjects(
            torch.from_numpy(prediction.boxes),
            torch.from_numpy(prediction.labels),
            dataset.label_names if class_names is None else class_names,
            torch.from_numpy(prediction.scores),
        )
        pair = side_by_side(draw_pair(sample.image, truth, predicted))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_picture(path, Image.fromarray(pair.permute(1, 2, 0).numpy()))
    logger.info(
        "%d pictures in %s: truth on the left, predictions with a score from %.2f on the right",
        len(written),
        folder,
        threshold,
    )
    return written


def _labelled_file(dataset: CocoDetection, index: int) -> LabelledFile:
    """Return the file of an image and the size that its labels refer to."""
    width, height = dataset.labels.sizes[index].long().tolist()
    return LabelledFile(dataset.image_path(index), (width, height))
