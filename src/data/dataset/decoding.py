"""Decoding of image files as they are displayed: 8-bit RGB, upright, whatever the mode of the file.

Ordinary JPEG files are decoded by torchvision (`jpeg.py`), all others by Pillow, which supports more modes.
`picture.py` defines the result.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ...core.errors import DataError, first_line
from ...core.paths import open_regular
from ...runtime.limits import is_system_limit
from ...runtime.warning_filters import without_warnings
from ..transforms.pixels import Pixels
from .jpeg import Decoded, decode_ordinary_jpeg
from .picture import (
    ImageFlag,
    PictureError,
    header_sizes,
    picture_of,
)

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


class ImageError(DataError):
    """An image cannot be read or does not match its labels; the message names the file."""


class ImageSizeError(ImageError):
    """An image is readable, but its labels were made for another size: one of the two is wrong."""


class ImageChangedError(ImageError):
    """A file was changed after the start of the run."""


def load_image(
    path: str | Path,
    expected_wh: tuple[int, int] | None = None,
    *,
    bit_depth: int | None = None,
) -> Tensor:
    """Decode an image, as `inspect_image` does, and return it without its flags."""
    image, _ = inspect_image(path, expected_wh, bit_depth=bit_depth)
    return image


def inspect_image(
    path: str | Path,
    expected_wh: tuple[int, int] | None = None,
    check: Callable[[os.stat_result], None] = lambda _: None,
    before_decoding: Callable[[int], None] = lambda _: None,
    *,
    bit_depth: int | None = None,
) -> tuple[Tensor, ImageFlag]:
    """Decode an image and return it with its flags.

    Args:
        path: image file.
        expected_wh: (width, height) that the labels were made for. The EXIF rotation is applied only if the
            result has this size; if neither orientation has it, the file contradicts its labels.
        check: function that gets the status of the opened file and may raise an error.
        before_decoding: function that gets the number of pixels in the header before memory is allocated for
            them. It can be called twice for an image.
        bit_depth: number of bits that the samples of 16-bit files use; None means 16.

    Returns:
        The image `[3, H, W]` uint8, RGB; and its flags.

    Raises:
        ImageError: if the file is missing, damaged, too large, or has a mode without a defined range.
        ImageSizeError: if the image has another size than `expected_wh`.
    """
    pixels, flags = inspect_reduced(
        path, expected_wh, check, before_decoding, bit_depth=bit_depth
    )
    return pixels.image, flags


def inspect_reduced(
    path: str | Path,
    expected_wh: tuple[int, int] | None = None,
    check: Callable[[os.stat_result], None] = lambda _: None,
    before_decoding: Callable[[int], None] = lambda _: None,
    *,
    bit_depth: int | None = None,
    reduction: int = 1,
) -> tuple[Pixels, ImageFlag]:
    """Decode an image as `inspect_image` does, at a reduced size if it is an ordinary JPEG.

    The size of the whole image is compared with that of the labels.

    Args:
        path, expected_wh, check, before_decoding, bit_depth: as for `inspect_image`, with the same errors.
        reduction: factor by which the sides may be reduced: 1, 2, 4 or 8.

    Returns:
        The pixels and the flags.
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
    decoded = decode_ordinary_jpeg(
        raw, MAX_PIXELS, expected_wh, before_decoding, reduction
    )
    if decoded is None:
        image, flags = _decode_any(
            raw, path, expected_wh, before_decoding, bit_depth
        )
        height, width = image.shape[1:]
        decoded = Decoded(Pixels(image), (width, height), flags)
    size = decoded.size
    if expected_wh is not None and size != tuple(expected_wh):
        raise ImageSizeError(
            f"image {path} has {size[0]} x {size[1]} pixels but its labels were made for "
            f"{expected_wh[0]} x {expected_wh[1]}"
        )
    return decoded.pixels, decoded.flags


def image_from_pil(
    image: Image.Image,
    name: str = "image",
    *,
    bit_depth: int | None = None,
) -> Tensor:
    """Convert an opened Pillow image as `inspect_pil` does, and return it without its flags."""
    pixels, _ = inspect_pil(image, name, bit_depth=bit_depth)
    return pixels


def inspect_pil(
    image: Image.Image,
    name: str = "image",
    *,
    bit_depth: int | None = None,
) -> tuple[Tensor, ImageFlag]:
    """Convert an opened Pillow image in the same way as a file: `[3, H, W]` uint8, RGB, upright.

    Raises:
        ImageError: if the image is damaged or has a mode without a defined range.
    """
    try:
        pixels, flags = picture_of(image, bit_depth=bit_depth)
    except PictureError as error:
        raise ImageError(f"image {name} {error}") from None
    except Exception as error:
        # Pillow decodes an image when it is first used; its plugins raise many types, see _decode_any
        raise ImageError(
            f"image {name} is damaged: {first_line(error)}"
        ) from None
    return torch.from_numpy(pixels).permute(2, 0, 1), flags


def _decode_any(
    raw: bytes,
    path: str | Path,
    expected_wh: tuple[int, int] | None,
    before_decoding: Callable[[int], None],
    bit_depth: int | None,
) -> tuple[Tensor, ImageFlag]:
    """Decode an image with Pillow."""
    try:
        # the size is checked below, and broken metadata does not matter
        with without_warnings():
            image = Image.open(io.BytesIO(raw))
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"image {path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}; "
                    "it was not decoded"
                )
            before_decoding(image.width * image.height)
            pixels, flags = picture_of(
                image, expected_wh=expected_wh, bit_depth=bit_depth
            )
    except ImageError:
        raise
    except PictureError as error:
        raise ImageError(f"image {path} {error}") from None
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
    return torch.from_numpy(pixels).permute(2, 0, 1), flags


def image_size(path: str | Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Read only the header of an image; return (width, height) as stored, and upright.

    Raises:
        ImageError: if the file does not exist or is not an image.
    """
    try:
        with (
            without_warnings(),
            open_regular(path) as file,
            Image.open(file) as image,
        ):
            return header_sizes(image)
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
