"""Predictions of whole folders, videos and cameras, written as pictures or a video and as COCO results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..core.errors import ConfigError, DataError
from ..data.dataset.coco_format import load_coco
from ..data.dataset.images import ImageError
from ..runtime.files import prepare_output_dir, write_atomically
from ..runtime.log import logger
from .detector import Detector, LabelledFile, Readable, Seen
from .sources import VIDEO_SUFFIXES, Video, VideoWriter, image_files

PREDICTIONS = "predictions.json"


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
        source: an image, a folder, a video, or `camera:N`.
        output: folder for the results.
        annotations: COCO file whose images are looked at, under its image ids, within the folder `source`; without, images are
            numbered from 1 in the order of their names, frames in their order.
        draw: write pictures, or a video.
        frames: stop after so many images.
        settings: for `Detector.stream`: threshold, batch_size, nms, tiling.

    Returns:
        The file of the predictions, a list of COCO result entries with `file_name` added.

    Raises:
        DataError: if there is nothing to read; or, after all others were written, if images could not be read.
    """
    if frames is not None and frames < 1:
        raise ConfigError(f"--frames is {frames}, expected at least 1")
    folder = prepare_output_dir(output)
    video = _open_video(source)
    if video is not None:
        if annotations is not None:
            raise ConfigError("--annotations names image files; it has no meaning for a video")
        return _predict_video(detector, video, folder, draw, frames, settings)
    root, ids, files = _images(Path(source), annotations, folder)
    if folder.resolve() in (root.resolve(), *(file.parent.resolve() for file in ids)) and draw:
        raise ConfigError(
            f"the pictures would be written among the images in {folder}; choose another --output"
        )
    ids, files = dict(islice(ids.items(), frames)), files[:frames]
    unreadable: list[ImageError] = []
    seen = detector.stream(
        tqdm(files, desc="images", disable=None, leave=False), unreadable=unreadable, **settings
    )
    results = _ImageResults(folder, root, ids, draw)
    written, stopped = _write_results(folder, map(results.take, seen))
    if stopped:
        raise KeyboardInterrupt
    if unreadable:
        raise DataError(
            f"{len(unreadable)} of {len(ids)} images could not be read (first: {unreadable[0]}); the results of the others are in {folder}"
        )
    return written


def _open_video(source: str) -> Video | None:
    kind, _, number = source.rpartition(":")
    if number.isdecimal() and kind in ("camera", ""):
        return Video(int(number))
    return Video(Path(source)) if Path(source).suffix.lower() in VIDEO_SUFFIXES else None


def _images(
    source: Path, annotations: Path | None, output: Path
) -> tuple[Path, dict[Path, int], list[Readable]]:
    """Return the folder that names are relative to, the id of each image file, and the files as they are to be read; earlier results are none of them."""
    root = source.parent if source.is_file() else source
    if annotations is None:
        own = output.resolve()
        found = [
            file
            for file in image_files(source)
            if source.is_file() or own == root.resolve() or own not in file.resolve().parents
        ]
        if not found:
            raise DataError(f"{source} has no image files but those in {output}, which are earlier results")
        ids = {file: number for number, file in enumerate(found, start=1)}
        return root, ids, list(ids)
    labels = load_coco(str(annotations))
    ids = {root / labels.file_name(i): int(labels.image_ids[i]) for i in range(len(labels))}
    return root, ids, [LabelledFile(file, tuple(size)) for file, size in zip(ids, labels.sizes.tolist())]


class _ImageResults:
    """Draws the pictures of image files and gives their entries."""

    def __init__(self, folder: Path, root: Path, ids: dict[Path, int], draw: bool) -> None:
        self.folder, self.root, self.ids, self.draw = folder, root, ids, draw
        plain = [file.with_suffix("") for file in ids]
        self.ambiguous = (
            {stem for stem in plain if plain.count(stem) > 1} if len(set(plain)) < len(plain) else set()
        )

    def take(self, seen: Seen) -> list[dict[str, Any]]:
        file = Path(seen.prediction.source)
        name = file.relative_to(self.root)
        if self.draw:
            picture = self.folder / (
                f"{name}.jpg" if file.with_suffix("") in self.ambiguous else name.with_suffix(".jpg")
            )
            picture.parent.mkdir(parents=True, exist_ok=True)
            if picture.is_dir():
                raise ConfigError(
                    f"{picture} is a folder, so the picture cannot be written; choose another --output"
                )
            seen.prediction.draw(seen.image).save(picture, quality=92)
        return [{**entry, "file_name": str(name)} for entry in seen.prediction.to_coco(self.ids[file])]


def _predict_video(
    detector: Detector, video: Video, folder: Path, draw: bool, frames: int | None, settings: dict[str, Any]
) -> Path:
    name = Path(video.name)
    path = folder / (f"{name.stem}.mp4" if name.suffix else "camera.mp4")
    if draw and name.exists() and path.exists() and path.samefile(name):
        raise ConfigError(f"the drawn video would replace {name}; choose another --output")
    writer = VideoWriter(path, video.rate)

    def entries() -> Iterator[list[dict[str, Any]]]:
        numbered = islice(video, frames)
        bar = tqdm(
            numbered,
            desc="frames",
            total=min(filter(None, (video.count, frames)), default=None),
            disable=None,
            leave=False,
        )
        for number, seen in enumerate(detector.stream(bar, **settings), start=1):
            if draw:
                writer.write(np.asarray(seen.prediction.draw(seen.image)))
            yield [{**entry, "file_name": f"frame {number}"} for entry in seen.prediction.to_coco(number)]

    try:
        return _write_results(folder, entries())[0]
    finally:
        writer.close()


def _write_results(folder: Path, entries: Iterable[list[dict[str, Any]]]) -> tuple[Path, bool]:
    """Write the entries of all images, or of those until Ctrl-C, as one JSON list; return where they are, and whether it was stopped.

    Entries are kept as text, which takes a fraction of the memory.
    """
    lines, images, stopped = [], 0, False
    try:
        for own in entries:
            images += 1
            lines += [json.dumps(entry, ensure_ascii=False) for entry in own]
    except KeyboardInterrupt:
        stopped = True
        logger.info("stopped by Ctrl-C; what was seen until then is written")
    path = folder / PREDICTIONS
    write_atomically(path, lambda file: file.write(("[\n" + ",\n".join(lines) + "\n]\n").encode()))
    logger.info("%d images, %d detections: %s", images, len(lines), path)
    return path, stopped
