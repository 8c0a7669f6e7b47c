"""Image files looked at one by one: which are missing, lead elsewhere, cannot be decoded or are not what labels say."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..dataset.coco_format import TrueSizes
from ..dataset.decoding import ImageError, ImageFlag, inspect_image
from ..dataset.header_scan import BYTES, HEIGHT, UNKNOWN, WIDTH, ImageScan, scan_images, sizes_of_files
from ..dataset.misplaced_files import find_misplaced

LARGE_PIXELS = 16_000_000
"""Larger images are decoded one at a time, so that memory stays bounded."""


@dataclass
class CheckedImages:
    """What was found about the images of a data set, by their positions in it."""

    missing: list[int]
    leaving: dict[int, str]
    """Those that links carry out of the folder, and where to."""
    unreadable: dict[int, str]
    """And why."""
    marks: dict[ImageFlag, list[int]]
    scan: ImageScan


class ImageCheck:
    """Looks at image files; what was decoded once is not decoded again."""

    def __init__(self, *, decode: bool = True, workers: int = 4) -> None:
        """Store the settings.

        Args:
            decode: read images in full; else their headers alone, which does not find truncated files.
            workers: threads that decode.
        """
        self.decode = decode
        self.workers = workers
        self._known: dict[str, tuple[str | None, ImageFlag]] = {}
        self._large = threading.Lock()

    def look(
        self, folder: Path, names: Sequence[str], sizes: np.ndarray, *, follow_links: bool = False
    ) -> CheckedImages:
        """Look at files.

        Args:
            folder: what the names are relative to.
            names: file names without `..`.
            sizes: `[N, 2]` (width, height) in pixels as labels have them; what is not positive agrees with nothing.
            follow_links: open files that links carry out of the folder.
        """
        missing, leaving = find_misplaced(folder, names)
        leaving = {} if follow_links else leaving
        absent = {*missing, *leaving}
        paths = ["" if i in absent else str(folder / name) for i, name in enumerate(names)]
        scan = scan_images(paths, sizes)
        here = [i for i in range(len(names)) if i not in absent]
        states = (
            self._decode([(paths[i], int(scan.rows[i, WIDTH]) * int(scan.rows[i, HEIGHT])) for i in here])
            if self.decode
            else [
                (
                    f"image {paths[i]} {'cannot be opened' if scan.rows[i, BYTES] == UNKNOWN else 'has no header that can be read'}"
                    if scan.rows[i, WIDTH] == UNKNOWN
                    else None,
                    ImageFlag(0),
                )
                for i in here
            ]
        )
        unreadable = {i: error for i, (error, _) in zip(here, states) if error}
        marks = {
            mark: [i for i, (_, found) in zip(here, states) if mark in found]
            for mark in (ImageFlag.ROTATED, ImageFlag.CMYK, ImageFlag.SIXTEEN_BIT)
        }
        return CheckedImages(
            missing, leaving, unreadable, {ImageFlag.SEVERAL_FRAMES: scan.several_frames(), **marks}, scan
        )

    @staticmethod
    def true_sizes(folder: Path, follow_links: bool) -> TrueSizes:
        """Return what gives images the sizes that their headers say, where labels contradict them; nothing outside the folder is opened."""

        def sizes_in_files(names: list[str], sizes: np.ndarray) -> np.ndarray:
            missing, leaving = find_misplaced(folder, names)
            absent = {*missing, *(() if follow_links else leaving)}
            here = [i for i in range(len(names)) if i not in absent]
            true = sizes.copy()
            true[here] = sizes_of_files([str(folder / names[i]) for i in here], sizes[here])
            return true

        return sizes_in_files

    def _decode(self, files: list[tuple[str, int]]) -> list[tuple[str | None, ImageFlag]]:
        """Return for each (path, number of pixels) why it cannot be decoded, or None, and its marks."""
        new = [file for file in files if file[0] not in self._known]
        with ThreadPoolExecutor(self.workers) as pool:
            for (path, _), state in zip(
                new, tqdm(pool.map(self._state, new), "images", len(new), leave=False, disable=None)
            ):
                self._known[path] = state
        return [self._known[path] for path, _ in files]

    def _state(self, file: tuple[str, int]) -> tuple[str | None, ImageFlag]:
        path, pixels = file
        try:
            if pixels <= LARGE_PIXELS:
                return None, inspect_image(path)[1]
            with self._large:
                return None, inspect_image(path)[1]
        except ImageError as error:
            return str(error), ImageFlag(0)
