"""What image files are like from outside: read once, from headers alone, so that labels can be held against files and files against themselves later."""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...core.errors import ResourceError
from ...runtime.distributed import gather_objects, is_main, machine, rank, world_size
from ...runtime.files import write_atomically
from ...runtime.limits import is_system_limit
from ...runtime.log import logger
from .decoding import ImageChangedError, ImageError, image_size

THREADS = 4
"""They wait for storage at the same time; a header itself takes some 30 microseconds."""

TAIL_BYTES = 4096
"""Of the end of a file, whose checksum tells most files of equal size apart."""

TIME_TOLERANCE_NS = 2_000_000_000
"""File systems keep times of change to as little as two seconds, and networks may round them late."""

BYTES, CHANGED, WIDTH, HEIGHT, TURNED, FRAMES, TAIL = range(7)
"""Columns: length, time of the last change in ns, pixels as stored, whether a note swaps the sides, whether there are several frames, checksum of the end."""

UNKNOWN = -1


class ImageScan:
    """What is known of each file of a data set, in memory that its loading processes share."""

    def __init__(self, paths: Sequence[str], rows: np.ndarray) -> None:
        """Store the files and their rows `[N, 7]` int64; `UNKNOWN` for what is not known."""
        self.paths = paths
        self._rows = torch.from_numpy(rows).share_memory_()

    @property
    def rows(self) -> np.ndarray:
        """`[N, 7]` int64."""
        return self._rows.numpy()

    def contradictions(self, sizes: np.ndarray) -> dict[int, tuple[int, int]]:
        """Return the images for which labels of these sizes (`[N, 2]`, width and height) were not made, and their real sizes."""
        true = true_sizes(self.rows, sizes)
        return {int(i): (int(true[i, 0]), int(true[i, 1])) for i in np.flatnonzero((true != sizes).any(1))}

    def several_frames(self) -> list[int]:
        """Return the images with more than one frame."""
        return np.flatnonzero(self.rows[:, FRAMES] == 1).tolist()

    def check_unchanged(self, index: int, now: os.stat_result) -> None:
        """Compare a file that is about to be read with what it was.

        Raises:
            ImageChangedError: if its length or its time of change differ.
        """
        row = self.rows[index]
        if row[BYTES] == UNKNOWN:
            return
        if row[CHANGED] == UNKNOWN:  # another machine looked at its own copy
            row[CHANGED] = now.st_mtime_ns
        if row[BYTES] != now.st_size or abs(row[CHANGED] - now.st_mtime_ns) > TIME_TOLERANCE_NS:
            how = (
                f"{row[BYTES]} bytes then, {now.st_size} now"
                if row[BYTES] != now.st_size
                else f"{now.st_size} bytes still, written anew"
            )
            raise ImageChangedError(
                f"image {self.paths[index]} has changed since the run began ({how}); leave data alone while they are learned from and "
                f"go on with -r auto, or set dataset.watch_files to False if only the times that the storage gives are not steady"
            )


def scan_images(paths: Sequence[str], sizes: np.ndarray, cache: Path | None = None) -> ImageScan:
    """Look at the headers of files; all ranks together, each at its share.

    A file that is no image, or none that can be opened, stays unknown: it is met, and told of, when it is decoded.

    Args:
        paths: the files.
        sizes: `[N, 2]`, (width, height) that their labels were made for. Only where they do not agree, a rotation noted in a file is looked for.
        cache: what rank 0 keeps, so that files which have not changed are not opened again; None for nothing.
    """
    names = hashlib.sha256("\n".join(paths).encode(errors="surrogateescape")).hexdigest()
    known = _read_cache(cache, names, len(paths))
    everyone = gather_objects(
        (machine(), _look_at(paths, sizes, known, range(rank(), len(paths), world_size())))
    )
    rows = np.empty((len(paths), 7), np.int64)
    for number, (_, share) in enumerate(everyone):
        rows[number :: world_size()] = share
    if cache is not None and is_main() and not np.array_equal(rows, known):
        _tell_changes(paths, rows, known)
        _write_cache(cache, names, rows)
    for number, (where, _) in enumerate(everyone):
        if where != machine():
            rows[number :: world_size(), CHANGED] = UNKNOWN
    return ImageScan(paths, rows)


def sizes_of_files(paths: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Return the sizes `[N, 2]` that people see; those of the labels where a file agrees with them or cannot be read."""
    return true_sizes(
        _look_at(paths, sizes, np.full((len(paths), 7), UNKNOWN, np.int64), range(len(paths))), sizes
    )


def true_sizes(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (width, height) of each image, `[N, 2]`: as in its labels, or if a file contradicts them, as people see it."""
    stored = rows[:, [WIDTH, HEIGHT]]
    upright = np.where(rows[:, [TURNED]] == 1, stored[:, ::-1], stored)
    fits = (stored == sizes).all(1) | (upright == sizes).all(1) | (rows[:, WIDTH] == UNKNOWN)
    return np.where(fits[:, None], sizes, upright)


def _look_at(paths: Sequence[str], sizes: np.ndarray, known: np.ndarray, share: range) -> np.ndarray:
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # broken metadata are no concern
        Image.init()  # before threads do it at once
        blocks = [share[i : i + 256] for i in range(0, len(share), 256)]
        found = [row for block in pool.map(_block, repeat(paths), repeat(known), blocks) for row in block]
        rows = np.array(found, np.int64).reshape(-1, 7)
        differing = np.flatnonzero(
            (rows[:, [WIDTH, HEIGHT]] != sizes[share.start : share.stop : share.step]).any(1)
            & (rows[:, WIDTH] != UNKNOWN)
            & (rows[:, TURNED] == UNKNOWN)
        )
        for at, is_turned in zip(differing, pool.map(_is_turned, [paths[share[at]] for at in differing])):
            if is_turned is None:
                rows[at, WIDTH] = UNKNOWN
            else:
                rows[at, TURNED] = is_turned
    return rows


def _is_turned(path: str) -> bool | None:
    """Return whether a note in a file swaps its sides; None if the file cannot be read."""
    try:
        stored, upright = image_size(path)
    except ImageError:
        return None
    return stored != upright


def _block(paths: Sequence[str], known: np.ndarray, indices: range) -> list[list[int]]:
    return [_row(paths[index], known[index]) for index in indices]


def _row(path: str, known: np.ndarray) -> list[int]:
    row = [UNKNOWN] * 7
    try:
        stat = os.stat(path)
        row[BYTES], row[CHANGED] = stat.st_size, stat.st_mtime_ns
        if known[WIDTH] != UNKNOWN and row[:2] == known[:2].tolist():
            return known.tolist()
        with open(path, "rb") as file, Image.open(file) as image:
            found = [*image.size, UNKNOWN, int(getattr(image, "is_animated", False))]
            file.seek(max(0, stat.st_size - TAIL_BYTES))
            row[WIDTH:] = [*found, zlib.crc32(file.read())]
    except (
        Exception
    ) as error:  # Pillow's plugins raise whatever they stumble over; the file is met again when it is decoded
        if is_system_limit(error):
            raise
    return row


def _read_cache(cache: Path | None, names: str, count: int) -> np.ndarray:
    """Return the rows that a cache holds for these files, or rows that know nothing."""
    nothing = np.full((count, 7), UNKNOWN, np.int64)
    if cache is None or not cache.exists():
        return nothing
    try:
        with np.load(cache, allow_pickle=False) as content:
            rows = content["rows"]
            return (
                rows
                if str(content["names"]) == names
                and rows.shape == nothing.shape
                and rows.dtype == nothing.dtype
                else nothing
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return nothing


def _write_cache(cache: Path, names: str, rows: np.ndarray) -> None:
    try:
        write_atomically(cache, lambda file: np.savez(file, names=names, rows=rows))
    except ResourceError as error:  # the next start will look again
        logger.warning("%s", error)


def _tell_changes(paths: Sequence[str], rows: np.ndarray, known: np.ndarray) -> None:
    """Say so if files are not those that an earlier run in the same folder began with."""
    changed = np.flatnonzero(
        (known[:, BYTES] != UNKNOWN) & (rows[:, [BYTES, CHANGED]] != known[:, [BYTES, CHANGED]]).any(1)
    )
    if len(changed):
        logger.warning(
            "%d images have changed since a run began in this folder (first: %s)",
            len(changed),
            paths[changed[0]],
        )
