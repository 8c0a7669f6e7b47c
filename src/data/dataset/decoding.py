"""Decoding of image files as they are displayed: 8-bit RGB, upright, whatever the mode of the file.

Plain JPEG files are decoded by torchvision, all others by Pillow, which supports more modes.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from enum import IntFlag
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ...core.errors import DataError, first_line
from ...core.paths import open_regular
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

STRIP_PIXELS = 1 << 22
"""Large images are converted in strips of about this many pixels, so that no whole copies of them are made."""

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
    before_decoding: Callable[[int], None] = lambda _: None,
) -> tuple[Tensor, ImageFlag]:
    """Decode an image and return it with its flags.

    Args:
        path: image file.
        expected_wh: (width, height) that the labels were made for. The EXIF rotation is applied only if the
            result has this size; if neither orientation has it, the file contradicts its labels.
        check: function that gets the status of the opened file and may raise an error.
        before_decoding: function that gets the number of pixels in the header before memory is allocated for
            them. It can be called twice for an image.

    Returns:
        The image `[3, H, W]` uint8, RGB; and its flags.

    Raises:
        ImageError: if the file is missing, damaged, too large, or has a mode without a defined range.
        ImageSizeError: if the image has another size than `expected_wh`.
    """
    try:
        with open_regular(path) as file:
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
        image = _decode_plain_jpeg(raw, before_decoding)
    if image is None:
        image, flags = _decode_any(raw, path, expected_wh, before_decoding)
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
        upright, _ = _upright(image)
    except Exception as error:  # of Pillow's plugins; see _decode_any
        raise ImageError(
            f"image {name} is damaged: {first_line(error)}"
        ) from None
    return torch.from_numpy(_to_rgb(upright, name)).permute(2, 0, 1)


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """Decode an image; return it rotated according to its EXIF tag, and whether it has a rotation."""
    image.load()
    rotated = image.getexif().get(ORIENTATION, 1) in range(2, 9)
    # without a rotation, exif_transpose would return a copy
    return ImageOps.exif_transpose(image) if rotated else image, rotated


def _decode_plain_jpeg(
    raw: bytes, before_decoding: Callable[[int], None]
) -> Tensor | None:
    """Decode a grey or YCbCr JPEG without EXIF data; return None for all other files, which Pillow
    decodes.
    """
    components, pixels = _jpeg_header(raw)
    if components not in (1, 3) or b"Exif\0\0" in raw[:65536]:
        return None
    before_decoding(pixels)
    buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    try:
        return decode_jpeg(buffer, mode=ImageReadMode.RGB)
    except RuntimeError:
        return None  # Pillow reports the reason


def _jpeg_header(raw: bytes) -> tuple[int | None, int]:
    """Return the numbers of colour components and pixels in the first frame header.

    The components are None if the header is missing or the image is too large.
    """
    at = 2
    while at + 10 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        length = int.from_bytes(raw[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height = int.from_bytes(raw[at + 5 : at + 7], "big")
            width = int.from_bytes(raw[at + 7 : at + 9], "big")
            pixels = height * width
            return (raw[at + 9] if 0 < pixels <= MAX_PIXELS else None), pixels
        at += 1 if marker == 0xFF else 2 + length
    return None, 0


def _decode_any(
    raw: bytes,
    path: str | Path,
    expected_wh: tuple[int, int] | None,
    before_decoding: Callable[[int], None],
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
            before_decoding(image.width * image.height)
            upright, rotated = _upright(image)
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
        return _grey_to_rgb(np.asarray(image), path)
    if image.mode == "F":
        raise ImageError(
            f"image {path} has floating-point values without a defined range; convert it to 8 or 16 bits"
        )
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    try:
        for top, bottom in _strips(image.height, image.width):
            strip = image.crop((0, top, image.width, bottom))
            if strip.mode in _TRANSPARENT_MODES or "transparency" in strip.info:
                strip = strip.convert("RGBA")
                background = Image.new("RGBA", strip.size, (*BACKGROUND, 255))
                strip = Image.alpha_composite(background, strip)
            pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    except ValueError as error:  # for example mode La
        raise ImageError(
            f"image {path} of mode {image.mode} cannot be converted to RGB: {first_line(error)}"
        ) from None
    return pixels


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip, and the row after its last one."""
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _grey_to_rgb(grey: np.ndarray, path: str | Path) -> np.ndarray:
    """Convert 16-bit values `[H, W]` to `[H, W, 3]` uint8."""
    low = grey.min()
    high = grey.max()
    if low < 0 or high > 65535:
        raise ImageError(
            f"image {path} has 32-bit values from {low} to {high}; convert it to 8 or 16 bits"
        )
    pixels = np.empty((*grey.shape, 3), np.uint8)
    for top, bottom in _strips(*grey.shape):
        strip = grey[top:bottom].astype(np.int64)
        eight_bits = ((strip + 128) // 257).clip(0, 255).astype(np.uint8)
        pixels[top:bottom] = eight_bits[..., None]
    return pixels


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
            with open_regular(path) as file, Image.open(file) as image:
                stored = image.size
                rotated = image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
                return stored, stored[::-1] if rotated else stored
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
