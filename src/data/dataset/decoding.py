"""Decoding of image files as they are displayed: 8-bit RGB, upright, whatever the mode of the file.

Plain JPEG files are decoded by torchvision, all others by Pillow, which supports more modes.
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
except ImportError:
    # torchvision plans to remove its codecs; then Pillow decodes everything, at half the speed
    decode_jpeg = None

MAX_PIXELS = 89_478_485
"""Maximum number of pixels; larger images are not decoded (Pillow's limit against decompression bombs)."""

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
"""Suffixes of image files, in lower case.

Files with other suffixes are recognized by content (`image_names`).
"""

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels: white, as in most viewers."""


ORIENTATION = 0x0112
"""EXIF tag of the orientation."""

_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")


class ImageError(DataError):
    """An image cannot be read or does not match its labels; the message names the file."""


class ImageSizeError(ImageError):
    """An image is readable, but its labels were made for another size: one of the two is wrong."""


class ImageChangedError(ImageError):
    """A file was changed after the start of the run."""


class ImageFlag(IntFlag):
    """Properties of an image that are counted and reported."""

    UNREADABLE = 1
    SEVERAL_FRAMES = 2
    ROTATED = 4
    CMYK = 8
    SIXTEEN_BIT = 16


FLAG_TEXTS = {
    ImageFlag.SEVERAL_FRAMES: "images with several frames, of which the first is used",
    ImageFlag.ROTATED: "images rotated according to their EXIF tag",
    ImageFlag.CMYK: "CMYK images, converted to RGB",
    ImageFlag.SIXTEEN_BIT: "16-bit images, scaled to 8 bits",
}
"""Texts of the messages about images that have a flag and are readable."""


def load_image(
    path: str | Path, expected_wh: tuple[int, int] | None = None
) -> Tensor:
    """Decode an image, as `inspect_image` does, and return it without its flags."""
    image, _ = inspect_image(path, expected_wh)
    return image


def inspect_image(
    path: str | Path,
    expected_wh: tuple[int, int] | None = None,
    check: Callable[[os.stat_result], None] = lambda _: None,
) -> tuple[Tensor, ImageFlag]:
    """Decode an image and return it with its flags.

    Args:
        path: image file.
        expected_wh: (width, height) that the labels were made for. The EXIF rotation is applied only if the
            result has this size; if neither orientation has it, the file contradicts its labels.
        check: function that gets the status of the opened file and may raise an error.

    Returns:
        The image `[3, H, W]` uint8, RGB; and its flags.

    Raises:
        ImageError: if the file is missing, damaged, too large, or has a mode without a defined range.
        ImageSizeError: if the image has another size than `expected_wh`.
    """
    try:
        with open(path, "rb") as file:
            check(os.fstat(file.fileno()))
            raw = file.read()
    except OSError as error:
        if is_system_limit(error):
            raise
        raise ImageError(
            f"image {path} cannot be read: {error.strerror or error}"
        ) from None
    if not raw:
        raise ImageError(f"image {path} is empty (0 bytes)")
    image = None
    flags = ImageFlag(0)
    if decode_jpeg and raw[:3] == b"\xff\xd8\xff":
        image = _decode_plain_jpeg(raw)
    if image is None:
        image, flags = _decode_any(raw, path, expected_wh)
    height, width = image.shape[1:]
    if expected_wh is not None and (width, height) != tuple(expected_wh):
        raise ImageSizeError(
            f"image {path} has {width} x {height} pixels but its labels were made for "
            f"{expected_wh[0]} x {expected_wh[1]}"
        )
    return image, flags


def image_from_pil(image: Image.Image, name: str = "image") -> Tensor:
    """Convert an opened Pillow image in the same way as a file: `[3, H, W]` uint8, RGB, upright.

    Raises:
        ImageError: if the image is damaged or has a mode without a defined range.
    """
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception as error:
        # Pillow decodes an image when it is first used; its plugins raise many types, see _decode_any
        raise ImageError(
            f"image {name} is damaged: {first_line(error)}"
        ) from None
    return torch.from_numpy(_to_rgb(upright, name)).permute(2, 0, 1)


def _decode_plain_jpeg(raw: bytes) -> Tensor | None:
    """Decode a grey or YCbCr JPEG without EXIF data.

    Returns None for all other files, which Pillow decodes.
    """
    components = _jpeg_components(raw)
    if components not in (1, 3) or b"Exif\0\0" in raw[:65536]:
        return None
    buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    try:
        return decode_jpeg(buffer, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None  # Pillow reports the reason


def _jpeg_components(raw: bytes) -> int | None:
    """Return the number of colour components in the first frame header of a JPEG.

    Returns None if there is no such header, or if it announces an image that is too large.
    """
    at = 2
    while at + 10 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        length = int.from_bytes(raw[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(raw[at + 5 : at + 7], "big")
            width = int.from_bytes(raw[at + 7 : at + 9], "big")
            return raw[at + 9] if 0 < height * width <= MAX_PIXELS else None
        at += 1 if marker == 0xFF else 2 + length
    return None


def _decode_any(
    raw: bytes,
    path: str | Path,
    expected_wh: tuple[int, int] | None,
) -> tuple[Tensor, ImageFlag]:
    """Decode an image with Pillow."""
    flags = ImageFlag(0)
    try:
        with warnings.catch_warnings():
            # the size is checked below, and broken metadata does not matter
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(raw))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; "
                    "it was not decoded"
                )
            if getattr(image, "is_animated", False):
                flags |= ImageFlag.SEVERAL_FRAMES
            image.load()
            upright = ImageOps.exif_transpose(image)
            orientation = image.getexif().get(ORIENTATION, 1)
            rotated = orientation in range(2, 9)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        # raised by Pillow above twice our limit
        raise ImageError(f"image {path} was not decoded: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"image {path} is not an image file (it begins with {raw[:12]!r})"
        ) from None
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, zlib.error ...
        raise ImageError(
            f"image {path} is damaged: {first_line(error)}"
        ) from None
    if expected_wh is not None:
        expected = tuple(expected_wh)
        if upright.size != expected and image.size == expected:
            # the labels refer to the stored pixels
            upright = image
            rotated = False
    if rotated:
        flags |= ImageFlag.ROTATED
    if image.mode == "CMYK":
        flags |= ImageFlag.CMYK
    if _is_16_bit(image):
        flags |= ImageFlag.SIXTEEN_BIT
    pixels = torch.from_numpy(_to_rgb(upright, path))
    return pixels.permute(2, 0, 1), flags


def _to_rgb(image: Image.Image, path: str | Path) -> np.ndarray:
    """Convert any mode to `[H, W, 3]` uint8."""
    if _is_16_bit(image):
        return _grey_to_rgb(np.asarray(image).astype(np.int64), path)
    if image.mode == "F":
        raise ImageError(
            f"image {path} has floating-point values without a defined range; convert it to 8 or 16 bits"
        )
    if image.mode in _TRANSPARENT_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
        image = Image.alpha_composite(background, image)
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray, path: str | Path) -> np.ndarray:
    """Convert 16-bit values `[H, W]` to `[H, W, 3]` uint8."""
    low = grey.min()
    high = grey.max()
    if low < 0 or high > 65535:
        raise ImageError(
            f"image {path} has 32-bit values from {low} to {high}; convert it to 8 or 16 bits"
        )
    rounded = (grey + 128) // 257
    eight_bits = rounded.clip(0, 255).astype(np.uint8)
    return np.repeat(eight_bits[..., None], 3, axis=2)


def _is_16_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def image_size(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read only the header of an image; return (width, height) as stored, and upright.

    Raises:
        ImageError: if the file does not exist or is not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                width, height = image.size
                orientation = image.getexif().get(ORIENTATION, 1)
                rotated = orientation in (5, 6, 7, 8)
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {path} is too large: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(f"image {path} is not an image file") from None
    except OSError as error:
        if is_system_limit(error):
            raise
        raise ImageError(
            f"image {path} cannot be read: {error.strerror or error}"
        ) from None
    except Exception as error:
        raise ImageError(
            f"image {path} is damaged: {first_line(error)}"
        ) from None
    stored = (width, height)
    upright = (height, width) if rotated else stored
    return stored, upright
