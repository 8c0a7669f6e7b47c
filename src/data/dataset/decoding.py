"""Reads image files as people see them: 8-bit RGB, upright, whatever the file's own mode.

Plain JPEG files go through torchvision's decoder; all others through Pillow, which knows more modes.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from enum import IntFlag
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...core.errors import DataError, first_line
from ...runtime.limits import is_system_limit

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # torchvision announced that a later release drops its codecs; Pillow then decodes everything, at half the speed
    decode_jpeg = None

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded (Pillow's own limit against decompression bombs)."""

IMAGE_SUFFIXES = frozenset(
    [
        ".apng",
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".jpx",
        ".mpo",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
"""What counts as an image in a folder, in lower case; other files count if they begin like one (`image_names`)."""

BACKGROUND = (255, 255, 255)
"""What shows through transparent pixels: white, as in most viewers."""


ORIENTATION = 0x0112
"""Exif's tag for how a camera was held."""


class ImageError(DataError):
    """One image cannot be read or is not what its labels say; names the file."""


class ImageSizeError(ImageError):
    """An image is sound, but its labels were made for another size: one of the two is wrong."""


class ImageChangedError(ImageError):
    """A file is no longer the one that it was at the start of the run."""


class Mark(IntFlag):
    """What is worth counting about an image."""

    UNREADABLE = 1
    SEVERAL_FRAMES = 2
    TURNED = 4
    CMYK = 8
    DEEP = 16


MARK_TEXTS = {
    Mark.SEVERAL_FRAMES: "images with several frames, of which the first is used",
    Mark.TURNED: "images turned upright, as a note in their files says",
    Mark.CMYK: "CMYK images, converted to RGB",
    Mark.DEEP: "16-bit images, scaled to 8 bits",
}
"""What is reported about images with a mark that can be read."""


def load_image(path: str | Path, expected_wh: tuple[int, int] | None = None) -> Tensor:
    """Decode an image: `inspect_image` without its marks."""
    return inspect_image(path, expected_wh)[0]


def inspect_image(
    path: str | Path,
    expected_wh: tuple[int, int] | None = None,
    check: Callable[[os.stat_result], None] = lambda _: None,
) -> tuple[Tensor, Mark]:
    """Decode an image and tell what is special about it.

    Args:
        path: the file.
        expected_wh: (width, height) that the labels were made for. It decides whether a rotation noted in the file
            is applied; if neither way fits, the file and its labels contradict each other.
        check: gets the state of the opened file, and may refuse it.

    Returns:
        `[3, H, W]` uint8, RGB; and its marks.

    Raises:
        ImageError: if the file is missing, damaged, too large or of a mode without a defined range.
        ImageSizeError: if it has another size.
    """
    try:
        with open(path, "rb") as file:
            check(os.fstat(file.fileno()))
            raw = file.read()
    except OSError as error:
        if is_system_limit(error):
            raise
        raise ImageError(f"image {path} cannot be read: {error.strerror or error}") from None
    if not raw:
        raise ImageError(f"image {path} is empty (0 bytes)")
    image = _decode_plain_jpeg(raw) if decode_jpeg and raw[:3] == b"\xff\xd8\xff" else None
    marks = Mark(0)
    if image is None:
        image, marks = _decode_any(raw, path, expected_wh)
    size = (image.shape[2], image.shape[1])
    if expected_wh is not None and size != tuple(expected_wh):
        raise ImageSizeError(
            f"image {path} has {size[0]} x {size[1]} pixels but its labels were made for {expected_wh[0]} x {expected_wh[1]}"
        )
    return image, marks


def image_from_pil(image: Image.Image, name: str = "image") -> Tensor:
    """Convert an opened image as a file of it would be read: `[3, H, W]` uint8, RGB, upright.

    Raises:
        ImageError: if it is damaged or of a mode without a defined range.
    """
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as error:  # an image is decoded when first used; see _decode_any
        raise ImageError(f"image {name} is damaged: {first_line(error)}") from None
    return torch.from_numpy(_to_rgb(upright, name)).permute(2, 0, 1)


def _decode_plain_jpeg(raw: bytes) -> Tensor | None:
    """Decode a grey or YCbCr JPEG without a rotation note; return None for anything that needs more care."""
    components = _jpeg_components(raw)
    if components not in (1, 3) or b"Exif\0\0" in raw[:65536]:
        return None
    buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    try:
        return decode_jpeg(buffer, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None  # Pillow names the reason


def _jpeg_components(raw: bytes) -> int | None:
    """Read the number of colour components and check the size in the first frame header; None if there is none."""
    at = 2
    while at + 10 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        length = int.from_bytes(raw[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (
                int.from_bytes(raw[at + 5 : at + 7], "big"),
                int.from_bytes(raw[at + 7 : at + 9], "big"),
            )
            return raw[at + 9] if 0 < height * width <= MAX_PIXELS else None
        at += 1 if marker == 0xFF else 2 + length
    return None


def _decode_any(raw: bytes, path: str | Path, expected_wh: tuple[int, int] | None) -> tuple[Tensor, Mark]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit stands below; broken metadata is no concern
            image = Image.open(io.BytesIO(raw))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; it was not decoded"
                )
            marks = Mark.SEVERAL_FRAMES if getattr(image, "is_animated", False) else Mark(0)
            image.load()
            upright = ImageOps.exif_transpose(image)
            turned = image.getexif().get(ORIENTATION, 1) in range(2, 9)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, from twice our limit on
        raise ImageError(f"image {path} was not decoded: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"image {path} is no image file (it begins with {raw[:12]!r})") from None
    except (
        Exception
    ) as error:  # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, zlib.error ...
        raise ImageError(f"image {path} is damaged: {first_line(error)}") from None
    if expected_wh is not None and upright.size != tuple(expected_wh) and image.size == tuple(expected_wh):
        # the labels were made on the pixels as stored
        upright = image
        turned = False
    marks |= (
        (Mark.TURNED if turned else 0)
        | (Mark.CMYK if image.mode == "CMYK" else 0)
        | (Mark.DEEP if _is_deep(image) else 0)
    )
    return torch.from_numpy(_to_rgb(upright, path)).permute(2, 0, 1), marks


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    """Convert any mode to `[H, W, 3]` uint8."""
    if _is_deep(image):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError(
                f"image {path} has 32-bit values from {grey.min()} to {grey.max()}; convert it to 8 or 16 bits"
            )
        return np.repeat(((grey + 128) // 257).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise ImageError(
            f"image {path} holds floating-point values without a defined range; convert it to 8 or 16 bits"
        )
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image)
    return np.array(image.convert("RGB"))


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def image_size(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read the header alone: (width, height) as stored, and upright.

    Raises:
        ImageError: if there is no such file or it is no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                turned = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                return image.size, image.size[::-1] if turned else image.size
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {path} is too large: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"image {path} is no image file") from None
    except OSError as error:
        if is_system_limit(error):
            raise
        raise ImageError(f"image {path} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        raise ImageError(f"image {path} is damaged: {first_line(error)}") from None
