"""Write the report of a run: `report.html` about its best checkpoint on its validation data."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError
from ..runtime.own_files import refuse_foreign
from .detector import Detector
from .detector_evaluation import evaluate_detector, open_labelled_images
from .evaluation_report import write_report

BEST = "best.pth"
REPORT = "report.html"


def write_run_report(
    folder: Path,
    *,
    device: str | None = None,
    images: Path | None = None,
    annotations: Path | None = None,
) -> Path:
    """Write `report.html` into the folder of a run.

    Example:
        >>> path = write_run_report(
        ...     Path("."), device="cpu", images=Path("images"), annotations=Path("annotations.json")
        ... )
        >>> path.name
        'report.html'

    Args:
        folder: folder of the run, with `best.pth`.
        device: device of the detector; None uses CUDA if it is available.
        images: folder of images; None uses the validation data of the run.
        annotations: COCO file of these images.

    Returns:
        The path of the report.

    Raises:
        ConfigError: if there is no best checkpoint, if a file that this project did not write has the name of
            the report, or if the run has validation data that are not a COCO file.
        DataError: if the validation data cannot be read.
    """
    weights = folder / BEST
    if not weights.is_file():
        raise ConfigError(
            f"{folder} has no {BEST}; a run without a score has none"
        )
    path = folder / REPORT
    refuse_foreign([path], "move it away or rename it")
    detector = Detector.from_checkpoint(weights, device=device)
    dataset = open_labelled_images(detector, images, annotations)
    evaluation = evaluate_detector(detector, dataset)
    return write_report(evaluation, detector, path)
