"""Write predictions for image files as pictures and as COCO results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..core.errors import ConfigError, DataError
from ..core.fault_lists import listed
from ..data.dataset.coco_images import CocoImages, load_coco_images
from ..data.dataset.decoding import ImageError
from ..runtime.own_files import (
    is_ours,
    picture_names,
    refuse_foreign,
    refuse_leaving,
    write_picture,
)
from .detector import Detector
from .prediction import Prediction
from .prediction_files import ADVICE, PREDICTIONS, PredictionFile, file_identity
from .prediction_settings import PredictionSettings
from .prediction_stream import ImagePrediction
from .reading import LabelledFile, Readable
from .sources import image_files


class ImageJob:
    """A prediction job for the images of a folder or of an annotation file."""

    def __init__(
        self,
        sources: Sequence[Path],
        folder: Path,
        annotations: Path | None,
        draw: bool,
        frames: int | None,
    ) -> None:
        """List the images and check the paths of all results."""
        self.folder = folder
        self.draw = draw
        sources, self.root = _with_common_folder(sources)
        if annotations is None:
            ids, files = _numbered_images(sources, self.root, folder)
        else:
            ids, files = _listed_images(
                self.root, load_coco_images(annotations)
            )
        self.ids = dict(islice(ids.items(), frames))
        self.files = files[:frames]
        names = [file.relative_to(self.root).as_posix() for file in self.ids]
        pictures = [folder / name for name in picture_names(names)]
        self.pictures = dict(zip(self.ids, pictures))
        results = [folder / PREDICTIONS]
        if draw:
            results += pictures
        inputs = {file_identity(file) for file in self.ids} - {None}
        for path in results:
            if file_identity(path) in inputs:
                raise ConfigError(
                    f"{path} is among the images and would be replaced by its own picture; {ADVICE}"
                )
        image_folders = {file_identity(file.parent) for file in self.ids}
        if draw and file_identity(folder) in image_folders:
            raise ConfigError(
                f"the pictures would be written among the images in {folder}; {ADVICE}"
            )
        refuse_leaving(folder, results)
        refuse_foreign(results, ADVICE)

    def run(self, detector: Detector, settings: PredictionSettings) -> Path:
        """Detect objects and write the results.

        Returns:
            Path of the predictions.

        Raises:
            DataError: if images could not be read, after all other results were written.
            ConfigError: if a setting is out of range.
        """
        unreadable: list[ImageError] = []
        bar = tqdm(self.files, desc="images", disable=None, leave=False)
        stream = detector.stream(bar, settings, unreadable=unreadable)
        with PredictionFile(self.folder) as results:
            for seen in stream:
                assert (
                    seen.prediction.source is not None
                )  # every image is a file
                file = Path(seen.prediction.source)
                if self.draw:
                    self._write_picture(file, seen)
                results.add(self._entries(file, seen.prediction))
        missing = len(self.files) - results.num_images - len(unreadable)
        if unreadable:
            raise DataError(
                f"{len(unreadable)} of {len(self.files)} images could not be read (first: {unreadable[0]}); "
                f"the results of the others are in {self.folder}"
            )
        if missing:
            raise DataError(
                f"{missing} of {len(self.files)} images were not processed; this is a bug"
            )
        return results.path

    def _write_picture(self, file: Path, seen: ImagePrediction) -> None:
        """Draw the detections of an image and write the picture."""
        picture = self.pictures[file]
        picture.parent.mkdir(parents=True, exist_ok=True)
        write_picture(picture, seen.prediction.draw(seen.image))

    def _entries(
        self, file: Path, prediction: Prediction
    ) -> list[dict[str, Any]]:
        """Return the COCO result entries of an image, with its file name relative to the input."""
        name = str(file.relative_to(self.root))
        entries = prediction.to_coco(self.ids[file])
        return [{**entry, "file_name": name} for entry in entries]


def _with_common_folder(
    sources: Sequence[Path],
) -> tuple[Sequence[Path], Path]:
    """Return the sources, and the deepest folder that contains all of them; names of images start there."""

    def folder_of(source: Path) -> Path:
        return source.parent if source.is_file() else source

    folders = {folder_of(source) for source in sources}
    if len(folders) == 1:
        return sources, folders.pop()
    sources = [source.absolute() for source in sources]
    folders = {folder_of(source) for source in sources}
    return sources, Path(os.path.commonpath(folders))


def _numbered_images(
    sources: Sequence[Path], root: Path, output: Path
) -> tuple[dict[Path, int], list[Readable]]:
    """Return image files with numbers from 1, and the list of images to read.

    Pictures that an earlier job wrote into `output` are left out.
    """
    own = output.resolve()
    found = []
    for source in sources:
        includes_all = source.is_file() or own == root.resolve()
        for file in image_files(source):
            if (
                includes_all
                or own not in file.resolve().parents
                or not is_ours(file)
            ):
                found.append(file)
    found = list(dict.fromkeys(found))
    if not found:
        raise DataError(
            f"{listed(sources)} has no image files except those in {output}, which are earlier results"
        )
    ids = {file: number for number, file in enumerate(found, start=1)}
    return ids, list(found)


def _listed_images(
    root: Path, images: CocoImages
) -> tuple[dict[Path, int], list[Readable]]:
    """Return the image files of a COCO file with their ids, and the list of images to read."""
    paths = [root / name for name in images.names]
    ids = dict(zip(paths, images.ids))
    files: list[Readable] = [*map(LabelledFile, paths, images.sizes)]
    return ids, files
