"""Fast decoding of ordinary JPEG files: grey or YCbCr, in any orientation, at full or at a reduced size.

All other files, and those with damage, are left to Pillow (`decoding.py`), which reports the reason. The
orientation is that of `picture.py`, whose rule is used as it is: only the pixels are decoded by other code.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...runtime.warning_filters import without_warnings
from ..transforms.pixels import Pixels
from .jpeg_decoder import find_jpeg_decoder
from .picture import SWAPPING, ImageFlag, header_flags, orientation_of

decode_jpeg = find_jpeg_decoder()
"""Decoder at full size; without it, Pillow decodes everything, at half the speed."""

START = b"\xff\xd8\xff"
"""First bytes of all JPEG files."""

_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""How pixels as stored become upright, for each orientation: whether x and y are exchanged, and whether x and
then y are mirrored afterwards.
"""

_APP1 = 0xE1
_SCAN = 0xDA
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF = b"Exif\0\0"
_XMP_ORIENTATION = b"tiff:Orientation"


class JpegHeader(NamedTuple):
    """Properties of a JPEG file that its segments before the pixels show."""

    width: int
    """Width as stored."""
    height: int
    components: int
    """Number of colour components: 1 grey, 3 YCbCr or RGB, 4 CMYK."""
    has_orientation: bool
    """Whether there is Exif data, or XMP with an orientation."""


class Decoded(NamedTuple):
    """A decoded file."""

    pixels: Pixels
    size: tuple[int, int]
    """(width, height) of the whole image, upright."""
    flags: ImageFlag


def read_header(raw: bytes) -> JpegHeader | None:
    """Read the header of a JPEG file; None if it is malformed.

    All segments before the pixels are considered, because Exif data and XMP can follow any others.
    """
    frame = None
    has_orientation = False
    at = 2
    while at + 10 < len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _SCAN:
            return frame and JpegHeader(*frame, has_orientation)
        end = at + 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
        if marker == _APP1:
            is_exif = raw.startswith(_EXIF, at + 4)
            is_xmp = raw.find(_XMP_ORIENTATION, at + 4, end) >= 0
            has_orientation = has_orientation or is_exif or is_xmp
        elif marker in _FRAMES:
            height = int.from_bytes(raw[at + 5 : at + 7], "big")
            width = int.from_bytes(raw[at + 7 : at + 9], "big")
            frame = (width, height, raw[at + 9])
        at = end
    return None


def decode_ordinary_jpeg(
    raw: bytes,
    max_pixels: int,
    expected_wh: tuple[int, int] | None,
    before_decoding: Callable[[int], None],
    reduction: int = 1,
) -> Decoded | None:
    """Decode a grey or YCbCr JPEG; return None for all other files.

    Args:
        raw: content of the file.
        max_pixels: maximum number of pixels; None is returned for a larger image.
        expected_wh: as for `picture.picture_of`.
        before_decoding: function that gets the number of pixels before memory is allocated for them.
        reduction: 1, 2, 4 or 8. The sides of the result are those of the file divided by this number and
            rounded up; the errors of `decoding.inspect_image` remain the same.
    """
    if decode_jpeg is None or not raw.startswith(START):
        return None
    header = read_header(raw)
    if header is None or header.components not in (1, 3):
        return None
    size = header.width * header.height
    if not 0 < size <= max_pixels:
        return None
    turn = _find_turn(raw, header, expected_wh)
    if turn is None:
        return None
    orientation, flags = turn
    before_decoding(size)
    stored = None
    if reduction > 1:
        stored = _decode_reduced(raw, header, reduction)
    if stored is None:
        reduction = 1
        stored = _decode_whole(raw)
    if stored is None:
        return None
    width, height = header.width, header.height
    if orientation in SWAPPING:
        width, height = height, width
    pixels = _turned(stored, orientation, (width, height), reduction)
    return Decoded(pixels, (width, height), flags)


def _find_turn(
    raw: bytes, header: JpegHeader, expected_wh: tuple[int, int] | None
) -> tuple[int, ImageFlag] | None:
    """Return the orientation to apply, and the flags, as `picture.picture_of` does; None if unknown."""
    if not header.has_orientation:
        return 1, ImageFlag(0)
    stored = (header.width, header.height)
    try:
        with without_warnings():
            image = Image.open(io.BytesIO(raw))
            flags = header_flags(image)
            orientation = orientation_of(image)
    except Exception:  # the slow path reports what is wrong
        return None
    if image.mode not in ("L", "RGB") or image.size != stored:
        return None
    if orientation == 1:
        return 1, flags
    upright = stored
    if orientation in SWAPPING:
        upright = (header.height, header.width)
    expected = upright if expected_wh is None else tuple(expected_wh)
    if upright != expected and stored == expected:
        return 1, flags | ImageFlag.NOT_ROTATED
    return orientation, flags | ImageFlag.ROTATED


def _decode_whole(raw: bytes) -> Tensor | None:
    """Return all pixels as stored, `[3, h, w]` uint8."""
    buffer = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    try:
        return decode_jpeg(buffer) if decode_jpeg is not None else None
    except RuntimeError:
        return None  # Pillow reports the reason


def _decode_reduced(
    raw: bytes, header: JpegHeader, reduction: int
) -> Tensor | None:
    """Return the pixels as stored, `[3, h, w]` uint8, from the low frequencies of each block alone.

    A JPEG stores blocks of 8 x 8 frequencies. Pillow's `draft` makes libjpeg compute fewer pixels from fewer
    of them, which is a good low-pass filter, and saves most of the work except for entropy decoding.
    """
    width = -(-header.width // reduction)
    height = -(-header.height // reduction)
    try:
        with without_warnings():
            image: Image.Image = Image.open(io.BytesIO(raw))
            image.draft(
                None,
                (
                    max(1, header.width // reduction),
                    max(1, header.height // reduction),
                ),
            )
            if image.size != (width, height):
                return None
            if image.mode != "RGB":
                image = image.convert("RGB")
            pixels = np.array(image)
    except Exception:
        return None  # the decoder for full size decides
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _turned(
    stored: Tensor, orientation: int, size: tuple[int, int], reduction: int
) -> Pixels:
    """Turn pixels as stored upright; `size` is (width, height) of the whole image afterwards."""
    if orientation not in _TURNS:
        return Pixels(stored, reduction)
    exchanged, *mirrored = _TURNS[orientation]
    image = stored.transpose(1, 2) if exchanged else stored
    origin = [0.0, 0.0]
    for axis, dimension in enumerate((2, 1)):
        if mirrored[axis]:
            image = image.flip(dimension)
            origin[axis] = image.shape[dimension] - size[axis] / reduction
    return Pixels(image.contiguous(), reduction, (origin[0], origin[1]))
