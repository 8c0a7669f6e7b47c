"""Sizes of many images, from their headers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from ..dataset.decoding import ImageError, image_size
from ..dataset.header_scan import THREADS
from .labelled_images import Faults


def upright_sizes(paths: Sequence[Path], faults: Faults) -> list[tuple[int, int] | None]:
    """Return (width, height) of each file as people see it; None, and a fault, for what is no image."""

    def size(path: Path) -> tuple[int, int] | str:
        try:
            return image_size(path)[1]
        except ImageError as error:
            return str(error).removeprefix(f"image {path} ")

    Image.init()  # before threads do it at once
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(size, paths))
    for path, entry in zip(paths, found):
        if isinstance(entry, str):
            faults.add("images that cannot be read", str(path), entry)
    return [None if isinstance(entry, str) else entry for entry in found]
