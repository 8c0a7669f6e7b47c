"""Images of requests: decoded in memory, within a limit on pixels that their headers are checked with."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..core.errors import first_line
from ..data.dataset.decoding import ImageError, image_from_pil
from ..runtime.warning_filters import without_warnings
from .refusals import Refused

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow's names of the formats that are decoded. Pillow's other decoders are not used; some of them start
programs."""


def decode_image(
    raw: bytes, max_pixels: int, bit_depth: int | None = None
) -> Tensor:
    """Decode the content of an image file.

    Args:
        raw: content of an image file.
        max_pixels: maximum number of pixels; the header is checked before memory is allocated.
        bit_depth: bits that the samples of 16-bit images use; None means 16.

    Returns:
        `[3, H, W]` uint8, RGB, upright.

    Raises:
        Refused: 422 if it is not an image, is damaged, or has too many pixels or a side that is too long.
    """
    if not raw:
        raise Refused(422, "the image is empty (0 bytes)")
    # the size is checked below, and broken metadata does not matter
    with without_warnings(), _opened(raw) as image:
        pixels = image.width * image.height
        if pixels > max_pixels:
            raise Refused(
                422,
                f"the image has {image.width} x {image.height} pixels, more than the maximum of "
                f"{max_pixels}",
            )
        try:
            return image_from_pil(image, "of the request", bit_depth=bit_depth)
        except ImageError as error:
            raise Refused(422, str(error)) from None


def _opened(raw: bytes) -> Image.Image:
    """Return an image whose header was read.

    Raises:
        Refused: if there is none.
    """
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        raise Refused(
            422,
            "the image is not a JPEG, PNG, WebP, BMP, GIF, TIFF or PPM file, or it is damaged (it begins "
            f"with {raw[:12]!r})",
        ) from None
    except Image.DecompressionBombError:
        raise Refused(
            422, "the image has far more pixels than the maximum"
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow's plugins raise OSError, SyntaxError, struct.error, ValueError, zlib.error ...
        raise Refused(
            422, f"the image is damaged: {first_line(error)}"
        ) from None
