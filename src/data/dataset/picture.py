"""The definition of a picture: how an image becomes 8-bit RGB pixels, upright, whatever its file contains.

Everything that reads images uses this module: training, evaluation, the checks of data sets and `Detector`.
It needs only Pillow and numpy, so a program without this project can use a copy of this file.

- Rotation: the orientation in Exif data (in TIFF: the tag), or else the one in XMP. If both exist and differ,
  Exif counts.
- Bits: a grey sample v of 16 bits becomes round(v / 257). With a bit depth b, it becomes
  round(255 v / (2^b - 1)). Pillow reads 16-bit colours, of which it keeps the high bytes.
- Transparency: composed on white. Colours of a palette are looked up.
- Bands besides the colours are dropped. They are transparency only if the file declares it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntFlag
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

ORIENTATION = 0x0112
"""Exif tag of the orientation, 1 to 8."""

BACKGROUND = (255, 255, 255)
"""Colour behind transparent pixels: white, as in most viewers."""

BIT_DEPTHS = range(8, 17)
"""Numbers of bits that the samples of a 16-bit file may use."""

LOW_RANGE_LIMIT = 1 << 14
"""If all samples of a 16-bit image are below this limit, they probably have 14 bits or fewer."""

STRIP_PIXELS = 1 << 22
"""Number of pixels, about, of the strips in which large images are converted, to save memory."""

SWAPPING = (5, 6, 7, 8)
"""Orientations that swap width and height."""

_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operations from the pixels as stored to those that a viewer shows (Exif 2.3, tag 274)."""

_TO_STORED = {
    **_TO_UPRIGHT,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
"""The inverse operations."""

_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")

_PNG_EXIF_KEYS = ("exif", "Raw profile type exif")

_XMP_ORIENTATION = re.compile(
    rb"""tiff:Orientation(?:\s*=\s*["']|\s*>)\s*([0-9])"""
)

_TRANSPARENT_MODES = ("RGBA", "LA", "PA", "La", "RGBa")

_TIFF_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
"""Number of colour bands for each photometric interpretation of a TIFF file."""

_TIFF_WIDTH = 256
_TIFF_HEIGHT = 257
_TIFF_PHOTOMETRIC = 262
_TIFF_SAMPLES = 277
_TIFF_EXTRA = 338

_TIFF_TRANSPARENCY = (1, 2, 999)
"""Values of the tag ExtraSamples for transparency; Corel Draw writes 999."""


MAX_SIDE = 65_535
"""Maximum width and height, which are those of JPEG; images with a longer side are not decoded.

To resize an image takes memory for its height times the input width of the model, so that a column of
40 million pixels, a PNG file of 350 kB, would take 77 GB.
"""


class PictureError(ValueError):
    """An image has no defined 8-bit colours, or a side that is too long."""


class ImageFlag(IntFlag):
    """Properties of an image that are counted and reported."""

    UNREADABLE = 1
    SEVERAL_FRAMES = 2
    ROTATED = 4
    CMYK = 8
    SIXTEEN_BIT = 16
    EXTRA_BANDS = 32
    TWO_ORIENTATIONS = 64
    LOW_RANGE = 128
    NOT_ROTATED = 256
    FULL_RANGE = 512


FLAG_TEXTS = {
    ImageFlag.SEVERAL_FRAMES: "images with several frames, of which the first is used",
    ImageFlag.ROTATED: "images rotated according to their EXIF tag",
    ImageFlag.CMYK: "CMYK images, converted to RGB",
    ImageFlag.SIXTEEN_BIT: "16-bit images, scaled to 8 bits",
    ImageFlag.EXTRA_BANDS: "images with bands besides the colours, which are dropped",
    ImageFlag.TWO_ORIENTATIONS: "images with different orientations in Exif and XMP, of which Exif is used",
    ImageFlag.LOW_RANGE: (
        "16-bit images that are almost black, because all samples are below 16384; "
        "if the sensor has 10, 12 or 14 bits, set bit_depth"
    ),
    ImageFlag.NOT_ROTATED: (
        "images not rotated according to their EXIF tag, because their labels have the size as stored"
    ),
}
"""Texts of the messages about images that have a flag and are readable."""


class Picture(NamedTuple):
    """An image as it enters a model."""

    pixels: np.ndarray
    """`[H, W, 3]` uint8, RGB."""
    flags: ImageFlag


def is_bit_depth(value: Any) -> bool:
    """Return whether a setting is a usable number of bits, or None for 16."""
    if value is None:
        return True
    return type(value) is int and value in BIT_DEPTHS


def read_picture(
    source: str | Path | BinaryIO, bit_depth: int | None = None
) -> np.ndarray:
    """Read an image file.

    Args:
        source: image file.
        bit_depth: number of bits that the samples of 16-bit files use, 8 to 16; None means 16.

    Returns:
        `[H, W, 3]` uint8, RGB, upright.

    Raises:
        PictureError: if the image has no defined 8-bit colours.
        OSError: if the file cannot be read. Pillow's decoders raise further types for damaged files.
    """
    with Image.open(source) as image:
        return picture_of(image, bit_depth=bit_depth).pixels


def picture_of(
    image: Image.Image,
    *,
    expected_wh: tuple[int, int] | None = None,
    bit_depth: int | None = None,
) -> Picture:
    """Convert an image of Pillow.

    Args:
        image: image, opened or loaded.
        expected_wh: (width, height) that labels were made for. If only the pixels as stored have this size,
            they are not rotated.
        bit_depth: as for `read_picture`.

    Raises:
        PictureError: if the image has no defined 8-bit colours, or a side that is too long.
    """
    if max(image.size) > MAX_SIDE:
        raise PictureError(
            f"has {image.width} x {image.height} pixels, but a side has at most {MAX_SIDE}; "
            "it was not decoded"
        )
    flags = header_flags(image)
    is_deep_colour = _is_deep_colour(image)
    # Pillow rotates TIFF images while it loads them, and then removes the orientation
    before = orientation_of(image)
    has_transparency = not _is_transparency_undeclared(image)
    image.load()
    if _has_two_orientations(image):  # this data may follow the pixels
        flags |= ImageFlag.TWO_ORIENTATIONS
    orientation = orientation_of(image)
    stored = image
    upright = image
    if orientation in _TO_UPRIGHT:
        upright = image.transpose(_TO_UPRIGHT[orientation])
    elif before in _TO_STORED:
        orientation = before
        stored = image.transpose(_TO_STORED[before])
    used = upright
    if orientation in _TO_UPRIGHT:
        expected = upright.size if expected_wh is None else tuple(expected_wh)
        if upright.size != expected and stored.size == expected:
            used = stored
            flags |= ImageFlag.NOT_ROTATED
        else:
            flags |= ImageFlag.ROTATED
    if _is_deep_grey(image):
        pixels, is_low = _grey_to_rgb(used, bit_depth, image.format)
    else:
        pixels = _to_rgb(used, has_transparency)
        is_low = False
        if is_deep_colour:
            high = int(np.asarray(used.convert("RGB")).max())
            is_low = 0 < high < LOW_RANGE_LIMIT >> 8
            _refuse_depth(bit_depth)
    if ImageFlag.SIXTEEN_BIT in flags:
        flags |= ImageFlag.LOW_RANGE if is_low else ImageFlag.FULL_RANGE
    return Picture(pixels, flags)


def orientation_of(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, that Exif data or else XMP requires.

    Only the header is read, except for PNG files, in which this data may follow the pixels.
    """
    value = image.getexif().get(ORIENTATION)
    if value is None:
        value = _xmp_orientation(image)
    return value if value in _TO_UPRIGHT else 1


def header_sizes(
    image: Image.Image,
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (width, height) as stored and upright, of an image that is opened and not loaded."""
    stored = stored_size(image)
    width, height = stored
    if orientation_of(image) in SWAPPING:
        return stored, (height, width)
    return stored, stored


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return (width, height) as stored, of an image that is opened and not loaded."""
    tags = getattr(image, "tag_v2", None)
    if tags is None:
        return image.size
    # Pillow swaps the sides of TIFF images already when it opens them
    return int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])


def header_flags(image: Image.Image) -> ImageFlag:
    """Return the flags that the header of an image shows."""
    flags = ImageFlag(0)
    if getattr(image, "is_animated", False):
        flags |= ImageFlag.SEVERAL_FRAMES
    if image.mode == "CMYK":
        flags |= ImageFlag.CMYK
    if _is_deep_grey(image) or _is_deep_colour(image):
        flags |= ImageFlag.SIXTEEN_BIT
    if _has_extra_bands(image):
        flags |= ImageFlag.EXTRA_BANDS
    if _has_two_orientations(image):
        flags |= ImageFlag.TWO_ORIENTATIONS
    return flags


def _has_two_orientations(image: Image.Image) -> bool:
    """Return whether Exif and XMP have different orientations."""
    from_xmp = _xmp_orientation(image)
    if from_xmp is None:
        return False
    if image.format == "PNG" and not set(_PNG_EXIF_KEYS) & set(image.info):
        return False  # `getexif` would decode the image to look for it
    return image.getexif().get(ORIENTATION, from_xmp) != from_xmp


def _xmp_orientation(image: Image.Image) -> int | None:
    for key in _XMP_KEYS:
        text = image.info.get(key)
        if isinstance(text, str):
            text = text.encode("utf-8", "replace")
        found = _XMP_ORIENTATION.search(text) if text else None
        if found:
            return int(found[1])
    return None


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I;16") or image.mode == "I"


def _is_deep_colour(image: Image.Image) -> bool:
    """Return whether a file that is not loaded has 16-bit colours, of which Pillow reads the high bytes."""
    if image.mode.startswith("I"):
        return False
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        if isinstance(arguments, tuple) and arguments:
            arguments = arguments[0]
        if isinstance(arguments, str) and ";16" in arguments:
            return True
    return False


def _tiff_tag(image: Image.Image, tag: int, default: Any) -> Any:
    tags = getattr(image, "tag_v2", None)
    return default if tags is None else tags.get(tag, default)


def _extra_samples(image: Image.Image) -> tuple[int, ...]:
    """Return the kind of each band besides the colours of a TIFF image; 0 for an unspecified one."""
    photometric = _tiff_tag(image, _TIFF_PHOTOMETRIC, None)
    samples = _tiff_tag(image, _TIFF_SAMPLES, 1)
    count = samples - _TIFF_COLOURS.get(photometric, samples)
    kinds = _tiff_tag(image, _TIFF_EXTRA, ())
    if isinstance(kinds, int):
        kinds = (kinds,)
    count = max(0, count)
    unspecified = (0,) * max(0, count - len(kinds))
    return (*kinds[:count], *unspecified)


def _has_extra_bands(image: Image.Image) -> bool:
    """Return whether a TIFF image has bands that are neither colours nor transparency."""
    return any(kind not in _TIFF_TRANSPARENCY for kind in _extra_samples(image))


def _is_transparency_undeclared(image: Image.Image) -> bool:
    """Return whether Pillow uses an unspecified band of a TIFF image as transparency."""
    extra = _extra_samples(image)
    return bool(extra) and not set(extra) & set(_TIFF_TRANSPARENCY)


def _to_rgb(image: Image.Image, has_transparency: bool) -> np.ndarray:
    """Convert a mode with 8 bits per sample or fewer to `[H, W, 3]` uint8."""
    if image.mode == "F":
        raise PictureError(
            "has floating-point values without a defined range; convert it to 8 or 16 bits"
        )
    is_transparent = (
        image.mode in _TRANSPARENT_MODES or "transparency" in image.info
    )
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, bottom in _strips(image.height, image.width):
        strip = image.crop((0, top, image.width, bottom))
        if is_transparent and has_transparency:
            strip = _on_background(strip)
        pixels[top:bottom] = np.asarray(strip.convert("RGB"))
    return pixels


def _on_background(image: Image.Image) -> Image.Image:
    """Compose a transparent image on the background."""
    if image.mode == "La":  # Pillow has no direct conversion
        image = image.convert("LA")
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(background, image)


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip, and the row after its last one."""
    rows = max(1, STRIP_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _grey_to_rgb(
    image: Image.Image, bit_depth: int | None, file_format: str | None
) -> tuple[np.ndarray, bool]:
    """Convert 16-bit values to `[H, W, 3]` uint8, and return whether their range is small."""
    grey = np.asarray(image)
    low = grey.min()
    high = grey.max()
    if low < 0 or high > 65535:
        raise PictureError(
            f"has 32-bit values from {low} to {high}; convert it to 8 or 16 bits"
        )
    depth = bit_depth or 16
    if file_format == "PPM":  # Pillow scales its values to 16 bits
        depth = 16
    white = (1 << depth) - 1
    if high > white:
        raise PictureError(
            f"has values up to {high}, but bit_depth={depth} allows only {white}"
        )
    pixels = np.empty((*grey.shape, 3), np.uint8)
    for top, bottom in _strips(*grey.shape):
        strip = grey[top:bottom].astype(np.int64)
        rounded = (strip * 255 + white // 2) // white
        pixels[top:bottom] = rounded[..., None]
    is_low = bit_depth is None and 0 < high < LOW_RANGE_LIMIT
    return pixels, bool(is_low)


def _refuse_depth(bit_depth: int | None) -> None:
    """Refuse a bit depth for 16-bit colours, whose low bytes Pillow does not read."""
    if bit_depth not in (None, 16):
        raise PictureError(
            f"has 16 bits per colour, to which bit_depth={bit_depth} cannot be applied; convert it to 8 bits"
        )
