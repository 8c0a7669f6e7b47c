"""Check of all image files: missing files, links out of the folder, unreadable files, and image flags."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..dataset.coco_format import TrueSizes
from ..dataset.decoding import ImageError, image_size, inspect_image
from ..dataset.header_scan import (
    BYTES,
    FLAGS,
    HEIGHT,
    UNKNOWN,
    WIDTH,
    ImageScan,
    scan_images,
    sizes_of_files,
)
from ..dataset.misplaced_files import find_misplaced
from ..dataset.picture import FLAG_TEXTS, ImageFlag

LARGE_PIXELS = 16_000_000
"""Larger images are decoded one at a time, so that memory stays bounded."""


@dataclass
class CheckedImages:
    """Results about the images of a data set, by their positions in it."""

    missing: list[int]
    leaving: dict[int, str]
    """Links out of the folder, with their targets."""
    unreadable: dict[int, str]
    """Unreadable images, with the reasons."""
    flags: dict[ImageFlag, list[int]]
    scan: ImageScan


class ImageCheck:
    """Check image files; a file that was decoded once is not decoded again."""

    def __init__(self, *, decode: bool = True, workers: int = 4) -> None:
        """Store the settings.

        Args:
            decode: decode images in full; otherwise only headers are read, which does not find truncated
                files.
            workers: number of threads that decode.
        """
        self.decode = decode
        self.workers = workers
        self._known: dict[
            tuple[str, int | None], tuple[str | None, ImageFlag]
        ] = {}
        self._large = threading.Lock()

    def look(
        self,
        folder: Path,
        names: Sequence[str],
        sizes: np.ndarray,
        *,
        follow_links: bool = False,
        bit_depth: int | None = None,
    ) -> CheckedImages:
        """Check files.

        Args:
            folder: folder that the names are relative to.
            names: file names without `..`.
            sizes: `[N, 2]` (width, height) in pixels from the labels; values below 1 match no image.
            follow_links: open files that are symbolic links out of the folder.
            bit_depth: number of bits that the samples of 16-bit files use; None means 16.
        """
        missing, leaving = find_misplaced(folder, names)
        if follow_links:
            leaving = {}
        paths = [str(folder / name) for name in names]
        for index in (*missing, *leaving):
            paths[index] = ""
        scan = scan_images(paths, sizes)
        present = [index for index, path in enumerate(paths) if path]
        if self.decode:
            pixels = scan.rows[:, WIDTH] * scan.rows[:, HEIGHT]
            files = [(paths[index], int(pixels[index])) for index in present]
            states = self._decode(files, bit_depth)
        else:
            states = []
            for index in present:
                fault = _header_fault(paths[index], scan.rows[index])
                states.append((fault, ImageFlag(0)))
        unreadable = {}
        flags: dict[ImageFlag, list[int]] = {flag: [] for flag in FLAG_TEXTS}
        is_full_range = False
        for index, (error, found) in zip(present, states):
            if error:
                unreadable[index] = error
            if scan.rows[index, FLAGS] != UNKNOWN and not error:
                found |= ImageFlag(int(scan.rows[index, FLAGS]))
            if ImageFlag.ROTATED in found and _is_kept_as_stored(
                paths[index], sizes[index]
            ):
                found ^= ImageFlag.ROTATED | ImageFlag.NOT_ROTATED
            is_full_range |= ImageFlag.FULL_RANGE in found
            for flag, images in flags.items():
                if flag in found:
                    images.append(index)
        if is_full_range:  # single images are dark, but the sensor has 16 bits
            flags[ImageFlag.LOW_RANGE] = []
        return CheckedImages(missing, leaving, unreadable, flags, scan)

    @staticmethod
    def true_sizes(folder: Path, follow_links: bool) -> TrueSizes:
        """Return a function that corrects the sizes of labels from image headers.

        Files outside the folder are not opened, unless links are followed.
        """

        def sizes_in_files(names: list[str], sizes: np.ndarray) -> np.ndarray:
            absent = np.zeros(len(names), bool)
            missing, leaving = find_misplaced(folder, names)
            absent[missing] = True
            if not follow_links:
                absent[list(leaving)] = True
            present = np.flatnonzero(~absent)
            paths = [str(folder / names[index]) for index in present]
            true = sizes.copy()
            true[present] = sizes_of_files(paths, sizes[present])
            return true

        return sizes_in_files

    def _decode(
        self, files: list[tuple[str, int]], bit_depth: int | None
    ) -> list[tuple[str | None, ImageFlag]]:
        """Decode files, each given as (path, number of pixels).

        Returns:
            For each file the reason why it cannot be decoded, or None, and its flags.
        """
        new = []
        for file in files:
            if (file[0], bit_depth) not in self._known:
                new.append(file)
        with ThreadPoolExecutor(self.workers) as pool:
            states = pool.map(partial(self._state, bit_depth=bit_depth), new)
            shown = tqdm(
                states,
                "images",
                len(new),
                leave=False,
                disable=None,
            )
            for (path, _), state in zip(new, shown):
                self._known[path, bit_depth] = state
        return [self._known[path, bit_depth] for path, _ in files]

    def _state(
        self, file: tuple[str, int], bit_depth: int | None
    ) -> tuple[str | None, ImageFlag]:
        path, pixels = file
        try:
            if pixels <= LARGE_PIXELS:
                return None, inspect_image(path, bit_depth=bit_depth)[1]
            with self._large:
                return None, inspect_image(path, bit_depth=bit_depth)[1]
        except ImageError as error:
            return str(error), ImageFlag(0)


def _is_kept_as_stored(path: str, size: np.ndarray) -> bool:
    """Return whether only the pixels as stored have the (width, height) of the labels."""
    stored, upright = image_size(path)
    labelled = tuple(size.tolist())
    return stored != upright and labelled == stored


def _header_fault(path: str, row: np.ndarray) -> str | None:
    """Return the reason why the header of a file could not be read, or None."""
    if row[WIDTH] != UNKNOWN:
        return None
    if row[BYTES] == UNKNOWN:
        return f"image {path} cannot be opened"
    return f"image {path} has no readable header"
