"""Header data of all image files, read once.

The data is used to compare labels with files, to find duplicates, and to notice changes during a run.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...core.errors import ResourceError
from ...core.paths import open_regular
from ...runtime.distributed import (
    gather_objects,
    is_main,
    machine,
    rank,
    world_size,
)
from ...runtime.files import write_atomically
from ...runtime.limits import is_system_limit
from ...runtime.log import logger
from ...runtime.warning_filters import without_warnings
from .decoding import ImageChangedError, ImageError, image_size
from .picture import ImageFlag, header_flags, stored_size

THREADS = 4
"""Number of threads that wait for storage at the same time; reading a header takes about 30 microseconds."""

BLOCK = 256
"""Number of files that a thread reads at a time."""

TAIL_BYTES = 4096
"""Number of bytes at the end of a file in its checksum, which differs between most files of equal size."""

TIME_TOLERANCE_NS = 2_000_000_000
"""Tolerance of modification times.

Some file systems store them in units of two seconds, and some network storage rounds them.
"""

BYTES, CHANGED, WIDTH, HEIGHT, ROTATED, FLAGS, TAIL = range(7)
"""Columns of the header data.

They are the length, the modification time in ns, the width and height as stored, whether the
orientation swaps these, the flags that the header shows (`picture.header_flags`), and a checksum of the last
bytes.
"""

UNKNOWN = -1

CACHE_VERSION = "2"
"""Part of the identity of a cache; it changes with the meaning of the columns."""


class ImageScan:
    """Header data of each file of a data set, in memory shared with the loader workers."""

    def __init__(self, paths: Sequence[str], rows: np.ndarray) -> None:
        """Store the files and their rows `[N, 7]` int64, with `UNKNOWN` for missing values."""
        self.paths = paths
        self._rows = torch.from_numpy(rows).share_memory_()

    @property
    def rows(self) -> np.ndarray:
        """`[N, 7]` int64."""
        return self._rows.numpy()

    def contradictions(self, sizes: np.ndarray) -> dict[int, tuple[int, int]]:
        """Return the true sizes of the images that differ from the sizes of their labels.

        Args:
            sizes: `[N, 2]`, (width, height) that the labels were made for.
        """
        true = true_sizes(self.rows, sizes)
        found = {}
        is_other = (true != sizes).any(1)
        for index in np.flatnonzero(is_other).tolist():
            width, height = true[index].tolist()
            found[index] = (width, height)
        return found

    def found_flags(self) -> list[ImageFlag]:
        """Return the flags that headers of images show."""
        flags = self.rows[:, FLAGS]
        known = flags[flags != UNKNOWN]
        found = int(np.bitwise_or.reduce(known)) if len(known) else 0
        return [flag for flag in ImageFlag if flag & found]

    def with_flag(self, flag: ImageFlag) -> list[int]:
        """Return the images whose header shows a flag."""
        flags = self.rows[:, FLAGS]
        has_flag = (flags != UNKNOWN) & (flags & int(flag) != 0)
        return np.flatnonzero(has_flag).tolist()

    def check_unchanged(self, index: int, now: os.stat_result) -> None:
        """Compare the status of a file with the scan before it is read.

        Raises:
            ImageChangedError: if its length or its modification time differs.
        """
        row = self.rows[index]
        if row[BYTES] == UNKNOWN:
            return
        if row[CHANGED] == UNKNOWN:  # another machine scanned its own copy
            row[CHANGED] = now.st_mtime_ns
        if row[BYTES] != now.st_size:
            how = f"{row[BYTES]} bytes then, {now.st_size} now"
        elif abs(row[CHANGED] - now.st_mtime_ns) > TIME_TOLERANCE_NS:
            how = f"still {now.st_size} bytes, but written again"
        else:
            return
        raise ImageChangedError(
            f"image {self.paths[index]} has changed since the run began ({how}); "
            "do not change the data during a run, and resume with -r auto; "
            "if only the modification times of the storage are unstable, set dataset.watch_files to False"
        )


def scan_images(
    paths: Sequence[str],
    sizes: np.ndarray,
    cache: Path | None = None,
) -> ImageScan:
    """Read the headers of files; all ranks together, each for its part.

    A file that is not an image, or that cannot be opened, stays unknown: it is reported when it is decoded.

    Args:
        paths: image files.
        sizes: `[N, 2]`, (width, height) that their labels were made for. The orientation of a file is read
            only if its size differs from this.
        cache: file in which rank 0 keeps the result, so that unchanged files are not opened again; None
            disables it.
    """
    text = "\n".join([CACHE_VERSION, *paths]).encode(errors="surrogateescape")
    names = hashlib.sha256(text).hexdigest()
    known = _read_cache(cache, names, len(paths))
    ranks = world_size()
    own_part = range(rank(), len(paths), ranks)
    own_rows = _read_headers(paths, sizes, known, own_part)
    gathered = gather_objects((machine(), own_rows))
    rows = np.empty((len(paths), 7), np.int64)
    for number, (_, part) in enumerate(gathered):
        rows[number::ranks] = part
    if cache is not None and is_main() and not np.array_equal(rows, known):
        _warn_about_changes(paths, rows, known)
        _write_cache(cache, names, rows)
    for number, (other_machine, _) in enumerate(gathered):
        if other_machine != machine():
            rows[number::ranks, CHANGED] = UNKNOWN
    return ImageScan(paths, rows)


def scan_alone(paths: Sequence[str], sizes: np.ndarray) -> ImageScan:
    """Read the headers of files as `scan_images` does, in this process alone and without a cache."""
    nothing_known = np.full((len(paths), 7), UNKNOWN, np.int64)
    rows = _read_headers(paths, sizes, nothing_known, range(len(paths)))
    return ImageScan(paths, rows)


def sizes_of_files(paths: Sequence[str], sizes: np.ndarray) -> np.ndarray:
    """Return the displayed sizes of files, `[N, 2]`.

    The sizes of the labels are returned where they agree with the file, and where a file is unreadable.
    """
    nothing_known = np.full((len(paths), 7), UNKNOWN, np.int64)
    rows = _read_headers(paths, sizes, nothing_known, range(len(paths)))
    return true_sizes(rows, sizes)


def true_sizes(rows: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return (width, height) of each image, `[N, 2]`.

    This is the size in its labels, or the size as displayed if the file contradicts them.
    """
    stored = rows[:, [WIDTH, HEIGHT]]
    swapped = rows[:, [HEIGHT, WIDTH]]
    upright = np.where(rows[:, [ROTATED]] == 1, swapped, stored)
    unknown = rows[:, WIDTH] == UNKNOWN
    is_stored = (stored == sizes).all(1)
    is_upright = (upright == sizes).all(1)
    agrees = is_stored | is_upright | unknown
    return np.where(agrees[:, None], sizes, upright)


def _read_headers(
    paths: Sequence[str],
    sizes: np.ndarray,
    known: np.ndarray,
    part: range,
) -> np.ndarray:
    """Return the rows of the files in `part`, some of which may be known from a cache."""
    # broken metadata does not matter
    with without_warnings(), ThreadPoolExecutor(THREADS) as pool:
        Image.init()  # once, before the threads use it
        begins = range(0, len(part), BLOCK)
        blocks = [part[begin : begin + BLOCK] for begin in begins]
        found = pool.map(_block, repeat(paths), repeat(known), blocks)
        rows_of_all = list(chain.from_iterable(found))
        rows = np.array(rows_of_all, np.int64).reshape(-1, 7)
        expected = sizes[part.start : part.stop : part.step]
        differing = (rows[:, [WIDTH, HEIGHT]] != expected).any(1)
        is_image = rows[:, WIDTH] != UNKNOWN
        undecided = is_image & (rows[:, ROTATED] == UNKNOWN)
        numbers = np.flatnonzero(differing & undecided)
        files = [paths[part[number]] for number in numbers]
        for number, rotated in zip(numbers, pool.map(_is_rotated, files)):
            if rotated is None:
                rows[number, WIDTH] = UNKNOWN
            else:
                rows[number, ROTATED] = rotated
    return rows


def _is_rotated(path: str) -> bool | None:
    """Return whether the orientation of a file swaps its sides; None if the file cannot be read."""
    try:
        stored, upright = image_size(path)
    except ImageError:
        return None
    return stored != upright


def _block(
    paths: Sequence[str],
    known: np.ndarray,
    indices: range,
) -> list[list[int]]:
    return [_row(paths[index], known[index]) for index in indices]


def _row(path: str, known: np.ndarray) -> list[int]:
    row = [UNKNOWN] * 7
    try:
        stat = os.stat(path)
        row[BYTES] = stat.st_size
        row[CHANGED] = stat.st_mtime_ns
        is_known = known[WIDTH] != UNKNOWN
        if is_known and row[:2] == known[:2].tolist():
            return known.tolist()
        with open_regular(path) as file, Image.open(file) as image:
            width, height = stored_size(image)
            flags = int(header_flags(image))
            file.seek(max(0, stat.st_size - TAIL_BYTES))
            checksum = zlib.crc32(file.read())
            row[WIDTH:] = [width, height, UNKNOWN, flags, checksum]
    except Exception as error:
        # Pillow's plugins raise many types; the file is reported when it is decoded
        if is_system_limit(error):
            raise
    return row


def _read_cache(
    cache: Path | None,
    names: str,
    count: int,
) -> np.ndarray:
    """Return the cached rows of these files, or rows of `UNKNOWN`."""
    nothing = np.full((count, 7), UNKNOWN, np.int64)
    if cache is None or not cache.exists():
        return nothing
    try:
        with (
            open_regular(cache) as file,
            np.load(file, allow_pickle=False) as content,
        ):
            rows = content["rows"]
            same_names = str(content["names"]) == names
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return nothing
    if (
        same_names
        and rows.shape == nothing.shape
        and rows.dtype == nothing.dtype
    ):
        return rows
    return nothing


def _write_cache(
    cache: Path,
    names: str,
    rows: np.ndarray,
) -> None:
    try:
        write_atomically(
            cache, lambda file: np.savez(file, names=names, rows=rows)
        )
    except ResourceError as error:  # the next start reads the headers again
        logger.warning("%s", error)


def _warn_about_changes(
    paths: Sequence[str],
    rows: np.ndarray,
    known: np.ndarray,
) -> None:
    """Warn about files that changed since an earlier run in the same folder began."""
    columns = [BYTES, CHANGED]
    differing = (rows[:, columns] != known[:, columns]).any(1)
    was_known = known[:, BYTES] != UNKNOWN
    changed = np.flatnonzero(differing & was_known)
    if len(changed):
        logger.warning(
            "images changed since a run began in this folder: %d (first: %s)",
            len(changed),
            paths[changed[0]],
        )
