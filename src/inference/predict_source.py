"""Predictions for any input: an image, a folder, a video, a camera or a stream."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core.errors import ConfigError
from ..runtime.files import prepare_output_dir
from .detector import Detector
from .predict_images import ImageJob
from .predict_videos import VideoJob
from .prediction_settings import DEFAULT_SETTINGS, PredictionSettings
from .sources import open_source


def predict_source(
    detector: Detector,
    source: str,
    output: Path,
    settings: PredictionSettings = DEFAULT_SETTINGS,
    *,
    annotations: Path | None = None,
    draw: bool = True,
    frames: int | None = None,
) -> Path:
    """Detect objects in all images of a source; write pictures or a video, and `predictions.json`.

    Args:
        detector: detector to use.
        source: as for `open_job`.
        output: as for `open_job`.
        settings: settings of the prediction.
        annotations: as for `open_job`.
        draw: as for `open_job`.
        frames: as for `open_job`.

    Returns:
        Path of the predictions, a list of COCO result entries with `file_name` added.

    Raises:
        DataError: if there is nothing to read; or if images or frames could not be read, after all other
            results were written.
        ConfigError: as for `open_job` and `Detector.stream`.

    Example:
        >>> detector = Detector.from_checkpoint("best.pth", device="cpu")
        >>> predict_source(detector, "images", Path("results"), frames=2).name
        'predictions.json'
        >>> sorted(path.name for path in Path("results").iterdir())
        ['predictions.json', 'val_00000.jpg', 'val_00001.jpg']
    """
    job = open_job(
        source, output, annotations=annotations, draw=draw, frames=frames
    )
    return job.run(detector, settings)


def open_job(
    source: str,
    output: Path,
    *,
    more: Sequence[str] = (),
    annotations: Path | None = None,
    draw: bool = True,
    frames: int | None = None,
) -> ImageJob | VideoJob:
    """Check the input and the output of a job before a model is loaded for it.

    Args:
        source: an image, a folder, a video, the address of a video stream, or `camera:N`.
        output: folder for the results.
        more: further images and folders.
        annotations: COCO file that selects images in the folder `source` and provides their ids; it needs no
            boxes. Without it, images are numbered from 1 in the order of their names, and frames in theirs.
        draw: write pictures, or a video.
        frames: maximum number of images or frames.

    Raises:
        DataError: if there is nothing to read.
        ConfigError: if settings contradict each other, or results would replace files that are not earlier
            results.

    Example:
        >>> job = open_job("images", Path("results"), annotations=Path("annotations.json"), draw=False)
        >>> len(job.ids)
        8
    """
    if frames is not None and frames < 1:
        raise ConfigError(f"--frames is {frames}, expected at least 1")
    opened = open_source(source)
    others = [open_source(other) for other in more]
    for other in (opened, *others) if others else ():
        if other.is_video:
            raise ConfigError(
                f"{other.place} is not an image or a folder of images; predict it in a command of its own"
            )
    if opened.is_video:
        if annotations is not None:
            raise ConfigError(
                "--annotations selects image files; it cannot be used with a video"
            )
        return VideoJob(opened, prepare_output_dir(output), draw, frames)
    places = [Path(str(each.place)) for each in (opened, *others)]
    if annotations is not None and others:
        raise ConfigError(
            "--annotations selects images of one folder; it cannot be used with several inputs"
        )
    return ImageJob(
        places, prepare_output_dir(output), annotations, draw, frames
    )
