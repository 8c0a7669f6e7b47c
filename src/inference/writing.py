"""Predictions of whole folders, videos and cameras, written as pictures or a video and as COCO results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from ..core.errors import ConfigError, DataError, ResourceError
from ..data.dataset.coco_images import CocoImages, load_coco_images
from ..data.dataset.decoding import ImageError
from ..runtime.files import json_bytes, prepare_output_dir, temporary_path
from ..runtime.log import logger
from ..runtime.own_files import is_ours, picture_names, refuse_foreign, refuse_leaving, write_picture
from .detector import Detector, LabelledFile, Readable, Seen
from .sources import Source, Video, VideoWriter, image_files, open_source

PREDICTIONS = "predictions.json"

ADVICE = "choose another --output"


def predict_source(
    detector: Detector,
    source: str,
    output: Path,
    *,
    annotations: Path | None = None,
    draw: bool = True,
    frames: int | None = None,
    **settings: Any,
) -> Path:
    """Find objects in all images of a source; write pictures or a video, and `predictions.json`.

    Args:
        detector: finds them.
        source: as for `open_job`.
        output: as for `open_job`.
        annotations: as for `open_job`.
        draw: as for `open_job`.
        frames: as for `open_job`.
        settings: for `Detector.stream`: threshold, batch_size, nms, tiling.

    Returns:
        The file of the predictions, a list of COCO result entries with `file_name` added.

    Raises:
        DataError: if there is nothing to read; or, after all others were written, if images or frames are missing.
    """
    return open_job(source, output, annotations=annotations, draw=draw, frames=frames).run(
        detector, **settings
    )


def open_job(
    source: str,
    output: Path,
    *,
    annotations: Path | None = None,
    draw: bool = True,
    frames: int | None = None,
) -> ImageJob | VideoJob:
    """Check everything that can be wrong about a job before a model is loaded for it.

    Args:
        source: an image, a folder, a video, the address of a video stream, or `camera:N`.
        output: folder for the results.
        annotations: COCO file whose images are looked at, under its image ids, within the folder `source`; boxes are not
            needed. Without it images are numbered from 1 in the order of their names, frames in their order.
        draw: write pictures, or a video.
        frames: stop after so many images.

    Raises:
        DataError: if there is nothing to read.
        ConfigError: if settings contradict each other, or results would replace files that are not earlier results.
    """
    if frames is not None and frames < 1:
        raise ConfigError(f"--frames is {frames}, expected at least 1")
    opened = open_source(source)
    if opened.is_video:
        if annotations is not None:
            raise ConfigError("--annotations names image files; it has no meaning for a video")
        return VideoJob(opened, prepare_output_dir(output), draw, frames)
    return ImageJob(opened.place, prepare_output_dir(output), annotations, draw, frames)


class ImageJob:
    """The images of a folder or of an annotation file, and what will be written about them."""

    def __init__(
        self, source: Path, folder: Path, annotations: Path | None, draw: bool, frames: int | None
    ) -> None:
        """List the images and check the places of all results."""
        self.folder, self.draw = folder, draw
        self.root = source.parent if source.is_file() else source
        if annotations is None:
            self.ids, self.files = _numbered_images(source, self.root, folder)
        else:
            self.ids, self.files = _listed_images(self.root, load_coco_images(annotations))
        self.ids, self.files = dict(islice(self.ids.items(), frames)), self.files[:frames]
        names = [file.relative_to(self.root).as_posix() for file in self.ids]
        self.pictures = dict(zip(self.ids, (folder / name for name in picture_names(names))))
        results = [folder / PREDICTIONS, *(self.pictures.values() if draw else ())]
        own = {_identity(file) for file in self.ids} - {None}
        if clash := next((picture for picture in results if _identity(picture) in own), None):
            raise ConfigError(
                f"{clash} is among the images and would be replaced by its own picture; {ADVICE}"
            )
        if draw and _identity(folder) in {_identity(file.parent) for file in self.ids}:
            raise ConfigError(f"the pictures would be written among the images in {folder}; {ADVICE}")
        refuse_leaving(folder, results)
        refuse_foreign(results, ADVICE)

    def run(self, detector: Detector, **settings: Any) -> Path:
        """Find objects and write the results (`predict_source`)."""
        unreadable: list[ImageError] = []
        bar = tqdm(self.files, desc="images", disable=None, leave=False)
        stream = detector.stream(bar, unreadable=unreadable, **settings)
        with _Results(self.folder) as results:
            for seen in stream:
                results.add(self._take(seen))
        missing = len(self.files) - results.images - len(unreadable)
        if unreadable:
            raise DataError(
                f"{len(unreadable)} of {len(self.files)} images could not be read (first: {unreadable[0]}); the results "
                f"of the others are in {self.folder}"
            )
        if missing:
            raise DataError(f"{missing} of {len(self.files)} images were not looked at; this is a bug")
        return results.path

    def _take(self, seen: Seen) -> list[dict[str, Any]]:
        file = Path(seen.prediction.source)
        if self.draw:
            picture = self.pictures[file]
            picture.parent.mkdir(parents=True, exist_ok=True)
            write_picture(picture, seen.prediction.draw(seen.image))
        name = str(file.relative_to(self.root))
        return [{**entry, "file_name": name} for entry in seen.prediction.to_coco(self.ids[file])]


class VideoJob:
    """A video, a camera or a stream, and what will be written about it."""

    def __init__(self, source: Source, folder: Path, draw: bool, frames: int | None) -> None:
        """Open the video and check the places of all results."""
        self.folder, self.draw, self.frames = folder, draw, frames
        stem = source.place.stem if isinstance(source.place, Path) else "camera"
        self.path = folder / f"{stem}.mp4"
        if isinstance(source.place, Path) and self.path.exists() and self.path.samefile(source.place):
            raise ConfigError(f"the drawn video would replace {source.place}; {ADVICE}")
        refuse_foreign([folder / PREDICTIONS, *([self.path] if draw else [])], ADVICE)
        self.video = Video(source)

    def run(self, detector: Detector, **settings: Any) -> Path:
        """Find objects and write the results (`predict_source`)."""
        video, writer = self.video, VideoWriter(self.path, self.video.rate)
        total = min(filter(None, (video.count, self.frames)), default=None)
        bar = tqdm(islice(video, self.frames), desc="frames", total=total, disable=None, leave=False)
        stream = detector.stream(bar, **settings)
        try:
            with _Results(self.folder) as results:
                for number, seen in enumerate(stream, start=1):
                    if self.draw:
                        writer.write(np.asarray(seen.prediction.draw(seen.image)))
                    entries = seen.prediction.to_coco(number)
                    results.add([{**entry, "file_name": f"frame {number}"} for entry in entries])
        finally:
            writer.close()
        if fault := video.fault:
            raise DataError(f"{fault}; the results of {results.images} frames are in {self.folder}")
        return results.path


def _numbered_images(source: Path, root: Path, output: Path) -> tuple[dict[Path, int], list[Readable]]:
    """Return image files by number, from 1, and as they are to be read; earlier results are none of them."""
    own = output.resolve()
    found = [
        file
        for file in image_files(source)
        if source.is_file() or own == root.resolve() or own not in file.resolve().parents or not is_ours(file)
    ]
    if not found:
        raise DataError(f"{source} has no image files but those in {output}, which are earlier results")
    return {file: number for number, file in enumerate(found, start=1)}, list(found)


def _listed_images(root: Path, images: CocoImages) -> tuple[dict[Path, int], list[Readable]]:
    """Return the files of a COCO file's images with their ids, and as they are to be read."""
    ids = {root / name: image_id for name, image_id in zip(images.names, images.ids)}
    files = [LabelledFile(root / name, size) for name, size in zip(images.names, images.sizes)]
    return ids, files


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file or folder from any other, whatever name or mount leads to it; None if it does not exist."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


class _Results:
    """`predictions.json`, written entry by entry; whatever ends the job, what was found until then is kept."""

    def __init__(self, folder: Path) -> None:
        self.path, self.images, self.entries = folder / PREDICTIONS, 0, 0
        self._temporary = temporary_path(self.path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> _Results:
        self._file = open(self._temporary, "xb")  # noqa: SIM115  closed by __exit__
        self._file.write(b"[\n")
        return self

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write the entries of one image."""
        self.images += 1
        for entry in entries:
            self._file.write((b",\n" if self.entries else b"") + json_bytes(entry))
            self.entries += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._file as file:
                file.write(b"\n]\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            incomplete = self.path.with_stem(f"{self.path.stem}.incomplete")
            self._temporary.replace(incomplete)
            raise ResourceError(
                f"{self.path} cannot be written: {failure.strerror or failure}; what fits is in {incomplete}"
            ) from None
        if kind is not None and not self.images:  # earlier results stay
            self._temporary.unlink()
            return
        self._temporary.replace(self.path)
        if kind is not None:
            logger.info("the job ended early; what was found until then is written")
        logger.info("%d images, %d detections: %s", self.images, self.entries, self.path)
