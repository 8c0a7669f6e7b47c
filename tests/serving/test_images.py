"""Images in memory: formats, sizes and damage."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")

from src.serving.images import decode_image
from src.serving.refusals import Refused
from tests.fixtures.served import png

LIMIT = 1000


def encoded(kind: str, image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def header_of_png(width: int, height: int) -> bytes:
    """Return a file of 60 bytes that claims to be a large picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for chunk in (b"IHDR" + header, b"IDAT"):
        content += struct.pack(">I", len(chunk) - 4) + chunk
        content += struct.pack(">I", zlib.crc32(chunk))
    return content


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_usual_formats_are_decoded_as_rgb(kind):
    content = encoded(kind, Image.new("RGB", (20, 10), (200, 100, 50)))
    pixels = decode_image(content, LIMIT)
    assert pixels.shape == (3, 10, 20)
    difference = pixels[:, 5, 5].numpy() - np.array([200, 100, 50])
    assert abs(difference).max() <= 12


def test_a_rotated_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded("JPEG", Image.new("RGB", (20, 10)), exif=exif)
    assert decode_image(content, LIMIT).shape == (3, 20, 10)


def test_an_image_of_as_many_pixels_as_allowed_is_decoded():
    assert decode_image(png(100, 10), LIMIT).shape == (3, 10, 100)
    with pytest.raises(Refused, match="100 x 11 pixels, more than the maximum"):
        decode_image(png(100, 11), LIMIT)


@pytest.mark.parametrize("side", [10_000, 100_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    with pytest.raises(Refused, match="pixels") as caught:
        decode_image(header_of_png(side, side), 50_000_000)
    assert caught.value.status == 422


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_an_image_with_a_long_side_is_refused_because_of_the_memory_to_resize_it(
    size,
):
    with pytest.raises(Refused, match="a side has at most 65535") as caught:
        decode_image(header_of_png(*size), 50_000_000)
    assert caught.value.status == 422
    assert decode_image(png(1, 65_535), 50_000_000).shape == (3, 65_535, 1)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", r"the image is empty \(0 bytes\)"),
        (b"<svg xmlns='http://a'/>", "not a JPEG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a JPEG"),
        (b"\x89PNG\r\n\x1a\n", "not a JPEG|damaged"),
        (png()[:40], "damaged"),
        (header_of_png(10, 10), "damaged"),
    ],
)
def test_what_is_not_a_whole_image_is_refused(content, text):
    with pytest.raises(Refused, match=text) as caught:
        decode_image(content, LIMIT)
    assert caught.value.status == 422


def test_a_truncated_jpeg_is_refused():
    noise = np.random.default_rng(0).integers(0, 255, (30, 30, 3), np.uint8)
    content = encoded("JPEG", Image.fromarray(noise))
    with pytest.raises(Refused, match="damaged"):
        decode_image(content[: len(content) // 2], LIMIT)
