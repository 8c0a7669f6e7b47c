"""torchvision's JPEG decoder without the rest of torchvision, whose import takes as long as half of torch's.

Only the shared library with the image operators is loaded. torchvision itself can be imported later: the
loader of the system recognizes the library.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

RGB = 3
"""Number of torchvision's mode for three channels (`ImageReadMode.RGB`)."""

_LIBRARIES = ("image*.so", "image*.pyd", "image*.dylib")
"""Names of the library of image operators; releases and systems differ in the ending."""


def find_jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """Return a function from the bytes of a JPEG file to pixels, or None if torchvision has no such decoder.

    The function takes `[N]` uint8 and returns `[3, H, W]` uint8, RGB. It raises RuntimeError for other bytes.
    """
    for library in image_libraries():
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        if hasattr(torch.ops.image, "decode_jpeg"):
            return _decode_jpeg
    return None


def image_libraries() -> list[Path]:
    """Return the files of torchvision's image operators, without importing torchvision."""
    try:
        found = importlib.util.find_spec("torchvision")
    except ValueError:  # a stand-in of a test without a specification
        return []
    if found is None or not found.submodule_search_locations:
        return []
    libraries: list[Path] = []
    for folder in found.submodule_search_locations:
        for pattern in _LIBRARIES:
            libraries += sorted(Path(folder).glob(pattern))
    return libraries


def _decode_jpeg(data: Tensor) -> Tensor:
    return torch.ops.image.decode_jpeg(data, RGB, False)
