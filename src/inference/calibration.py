"""Images for the calibration of int8, and labelled images that show what it costs."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError, DataError
from ..data.dataset.coco_dataset import CocoDetection
from ..data.preparation.any_dataset import find_dataset, recognize
from ..runtime.log import logger
from .detector import Detector
from .detector_evaluation import open_labelled_images
from .reading import Readable
from .sources import image_files, spread


def calibration_data(
    detector: Detector, path: Path | None, count: int
) -> tuple[list[Readable], CocoDetection]:
    """Return calibration images, and the labelled images on which AP is measured.

    Args:
        detector: detector with the paths of its training and validation data, if they are known.
        path: a data set as for `find_dataset`: its part for training calibrates, its part for validation
            measures; or a folder of images without labels, which calibrate; None uses the data of the
            training.
        count: maximum number of calibration images, spread evenly.

    Raises:
        ConfigError: if the path does not exist, if `count` is below 1, or if the checkpoint names no data and
            none is given.
        DataError: if the data is wrong or has no images.

    Example:
        >>> detector = Detector("best.pth", device="cpu")
        >>> images, dataset = calibration_data(detector, Path("annotations.json"), count=4)
        >>> len(images), len(dataset)
        (4, 8)
    """
    if count < 1:
        raise ConfigError(
            f"--calibration-count is {count}, expected at least 1"
        )
    if path is None:
        files = _training_files(detector)
        dataset = open_labelled_images(detector)
    elif _is_data_set(path):
        found = find_dataset(path, split=False)
        for line in [*found.remarks, *found.warnings]:
            logger.info("%s", line)
        files = _files(
            open_labelled_images(detector, found.train_images, found.train_ann)
        )
        dataset = open_labelled_images(
            detector, found.val_images, found.val_ann
        )
    else:
        files = image_files(path)
        dataset = open_labelled_images(detector)
    chosen: list[Readable] = []
    chosen += spread(files, count)
    logger.info(
        "int8 is calibrated on %d of %d images, and AP measured on %d",
        len(chosen),
        len(files),
        len(dataset),
    )
    return chosen, dataset


def _is_data_set(path: Path) -> bool:
    """Return whether a path is a data set with labels, and not a folder of images alone.

    Raises:
        ConfigError: if it does not exist.
    """
    try:
        recognize(path)
    except DataError:
        if not path.is_dir():
            raise
        return False
    return True


def _training_files(detector: Detector) -> list[Path]:
    """Return the images that the detector was trained with.

    Raises:
        ConfigError: if its configuration does not name them, or they are not here.
    """
    config = detector.cfg.yaml_cfg if detector.cfg else {}
    loader = config.get("train_dataloader") or {}
    settings = loader.get("dataset") or {}
    images, annotations = (
        settings.get("img_folder"),
        settings.get("ann_file"),
    )
    if not images or not annotations:
        raise ConfigError(
            "the checkpoint names no training data to calibrate int8 with; give --calibration"
        )
    try:
        dataset = open_labelled_images(
            detector, Path(images), Path(annotations)
        )
    except ConfigError as error:
        raise ConfigError(
            f"{error}; to calibrate int8 with other images, give --calibration"
        ) from None
    return _files(dataset)


def _files(dataset: CocoDetection) -> list[Path]:
    """Return the image files of a data set."""
    return [dataset.image_path(index) for index in range(len(dataset))]
