"""Ordinary JPEG files are decoded fast, in any orientation and at reduced sizes, as Pillow decodes them."""

import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.dataset import jpeg
from src.data.dataset.decoding import (
    ImageError,
    ImageSizeError,
    inspect_image,
    inspect_reduced,
)
from src.data.dataset.jpeg import read_header
from src.data.dataset.picture import ORIENTATION, ImageFlag, picture_of
from src.data.dataset.synthetic import draw_scene
from src.data.transforms import Sample
from src.data.transforms.pixels import REDUCTIONS, reduction_for

WIDTH, HEIGHT = 37, 23
XMP = b"http://ns.adobe.com/xap/1.0/\0"
SCENE = draw_scene(np.random.default_rng(1), 1001, 8, empty_share=0).image


def jpeg_bytes(image: np.ndarray, **settings) -> bytes:
    """Return an image as a JPEG file."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=92, **settings)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    """Return Exif data with an orientation."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def segment(marker: int, content: bytes) -> bytes:
    """Return a segment of a JPEG file."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def xmp(orientation: int) -> bytes:
    """Return a segment with an orientation in XMP."""
    text = f'<rdf:Description tiff:Orientation="{orientation}"/>'
    return segment(0xE1, XMP + text.encode())


def with_segments(raw: bytes, *segments: bytes) -> bytes:
    """Insert segments after the first two bytes of a JPEG file and its first segment."""
    end = 4 + int.from_bytes(raw[4:6], "big")
    return raw[:end] + b"".join(segments) + raw[end:]


PLAIN = jpeg_bytes(SCENE[100 : 100 + HEIGHT, 200 : 200 + WIDTH])
COMMENT = segment(0xFE, b"a comment")
PROFILE = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(300))


def turned_by_exif(orientation: int) -> bytes:
    return with_segments(PLAIN, segment(0xE1, exif(orientation)))


WAYS = {
    "Exif": turned_by_exif,
    "Exif after other segments": lambda o: with_segments(
        PLAIN, COMMENT, PROFILE, segment(0xE1, exif(o))
    ),
    "XMP": lambda o: with_segments(PLAIN, xmp(o)),
    "XMP after other segments": lambda o: with_segments(PLAIN, COMMENT, xmp(o)),
    "Exif and the same XMP": lambda o: with_segments(
        PLAIN, segment(0xE1, exif(o)), xmp(o)
    ),
    "Exif and another XMP": lambda o: with_segments(
        PLAIN, xmp(9 - o), segment(0xE1, exif(o))
    ),
    "Exif without orientation": lambda o: with_segments(
        PLAIN, segment(0xE1, exif(1)[:-6] + bytes(6)), xmp(o)
    ),
    "two Exif segments": lambda o: with_segments(
        PLAIN, segment(0xE1, exif(o)), segment(0xE1, exif(9 - o))
    ),
}


def read(folder, raw: bytes, **settings):
    """Write a file, decode it, and return the pixels and flags, or the reason of a failure."""
    path = folder / "image.jpg"
    path.write_bytes(raw)
    try:
        return inspect_reduced(path, **settings)
    except ImageError as error:
        return str(error)


def same(ours, theirs) -> bool:
    """Return whether two results of `read` are equal."""
    if isinstance(ours, str) or isinstance(theirs, str):
        return ours == theirs
    return torch.equal(ours[0].image, theirs[0].image) and ours[1] == theirs[1]


@pytest.fixture
def by_pillow(monkeypatch, tmp_path):
    """Return a function that reads a file with Pillow alone."""

    def by_pillow(raw: bytes, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(jpeg, "decode_jpeg", None)
            return read(tmp_path, raw, **settings)

    return by_pillow


@pytest.fixture
def decodings(monkeypatch):
    """Return a list that gets an entry whenever the fast decoder is used."""
    calls = []
    decode = jpeg.decode_jpeg

    def counted(data):
        calls.append(len(data))
        return decode(data)

    monkeypatch.setattr(jpeg, "decode_jpeg", counted)
    return calls


# ---- one rule for the orientation ----


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("way", WAYS)
def test_fast_decoder_turns_an_image_as_pillow_does(
    tmp_path, by_pillow, decodings, way, orientation
):
    raw = WAYS[way](orientation)
    ours = read(tmp_path, raw)
    assert len(decodings) == 1
    assert same(ours, by_pillow(raw))


def test_all_orientations_differ(tmp_path):
    images = [
        read(tmp_path, turned_by_exif(o))[0].image.numpy().tobytes()
        for o in range(1, 9)
    ]
    assert len(set(images)) == 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "expected", [(WIDTH, HEIGHT), (HEIGHT, WIDTH), (WIDTH, WIDTH)]
)
def test_size_of_the_labels_decides_whether_an_image_is_turned(
    tmp_path, by_pillow, orientation, expected
):
    raw = turned_by_exif(orientation)
    ours = read(tmp_path, raw, expected_wh=expected)
    assert same(ours, by_pillow(raw, expected_wh=expected))
    upright = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    if expected == upright:
        assert (ours[1] == ImageFlag.ROTATED) == (orientation > 1)
    elif expected == (WIDTH, HEIGHT):
        assert ours[1] == ImageFlag.NOT_ROTATED
    else:
        assert "its labels were made for" in ours


def test_damaged_exif_gives_what_pillow_gives(tmp_path, by_pillow):
    rng = np.random.default_rng(0)
    whole = exif(6)
    results = set()
    for attempt in range(150):
        damaged = bytearray(whole)
        if attempt % 2:
            del damaged[int(rng.integers(6, len(damaged))) :]
        for _ in range(attempt % 3):
            damaged[int(rng.integers(len(damaged)))] = int(rng.integers(256))
        raw = with_segments(PLAIN, segment(0xE1, bytes(damaged)))
        ours = read(tmp_path, raw)
        assert same(ours, by_pillow(raw))
        results.add(ours if isinstance(ours, str) else ours[0].image.shape)
    assert len(results) > 1


def test_pillow_itself_agrees(tmp_path):
    for orientation in range(1, 9):
        raw = turned_by_exif(orientation)
        expected = picture_of(Image.open(io.BytesIO(raw)))
        pixels, flags = read(tmp_path, raw)
        assert np.array_equal(pixels.image.permute(1, 2, 0), expected.pixels)
        assert flags == expected.flags


def test_cmyk_is_left_to_pillow(tmp_path, decodings):
    stream = io.BytesIO()
    Image.new("CMYK", (40, 30), (10, 20, 30, 40)).save(stream, "JPEG")
    pixels, flags = read(tmp_path, stream.getvalue(), reduction=2)
    assert flags == ImageFlag.CMYK
    assert pixels.reduction == 1
    assert not decodings


# ---- headers ----


def test_header_shows_size_components_and_orientation():
    assert read_header(PLAIN) == (WIDTH, HEIGHT, 3, False)
    assert read_header(turned_by_exif(6)) == (WIDTH, HEIGHT, 3, True)
    grey = jpeg_bytes(SCENE[:8, :16, 0])
    assert read_header(grey) == (16, 8, 1, False)


def test_malformed_header_is_none():
    assert read_header(PLAIN[:100]) is None
    assert read_header(b"\xff\xd8\xff" + bytes(50)) is None
    assert read_header(b"") is None


# ---- reduced sizes ----


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "size", [(64, 32), (63, 33), (37, 23), (9, 70), (1, 1)]
)
def test_reduced_image_has_the_sides_divided_and_rounded_up(
    tmp_path, size, reduction
):
    raw = jpeg_bytes(SCENE[: size[1], : size[0]])
    pixels, _ = read(tmp_path, raw, expected_wh=size, reduction=reduction)
    width, height = size
    expected = (3, -(-height // reduction), -(-width // reduction))
    assert tuple(pixels.image.shape) == expected
    assert pixels.reduction == reduction


def test_size_of_the_labels_is_compared_with_the_whole_image(tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(PLAIN)
    with pytest.raises(ImageSizeError, match="has 37 x 23 pixels but"):
        inspect_reduced(path, (19, 12), reduction=2)
    inspect_reduced(path, (37, 23), reduction=2)


def test_other_formats_are_not_reduced(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(SCENE[:40, :40]).save(path)
    pixels, _ = inspect_reduced(path, reduction=4)
    assert pixels.reduction == 1
    assert torch.equal(pixels.image, inspect_image(path)[0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_and_turned_image_knows_where_the_file_begins(
    tmp_path, orientation
):
    edges = np.zeros((203, 301, 3), np.uint8)
    edges[80:, 120:] = 240
    raw = with_segments(jpeg_bytes(edges), segment(0xE1, exif(orientation)))
    whole = read(tmp_path, raw)[0].image[0].float()
    (image, reduction, origin), _ = read(tmp_path, raw, reduction=4)
    for axis, dimension in enumerate((1, 0)):
        # the position of the edge, from the mean along the other side
        profile, reduced = (
            pixels.mean(1 - dimension) for pixels in (whole, image[0].float())
        )
        found = [
            int((line - (line.max() + line.min()) / 2).diff().abs().argmax())
            for line in (profile, reduced)
        ]
        edge = (found[0] + 1) / reduction + origin[axis]
        assert abs(edge - (found[1] + 1)) < 0.1


def test_damaged_files_are_refused_alike_at_all_sizes(tmp_path, capfd):
    rng = np.random.default_rng(0)
    raw = jpeg_bytes(SCENE[:120, :160])
    refused = 0
    for attempt in range(60):
        damaged = bytearray(raw)
        if attempt % 2:
            del damaged[int(rng.integers(400, len(damaged))) :]
        for _ in range(3):
            damaged[int(rng.integers(200, len(damaged)))] = 77
        whole = read(tmp_path, bytes(damaged))
        reduced = read(tmp_path, bytes(damaged), reduction=2)
        assert isinstance(whole, str) == isinstance(reduced, str)
        if isinstance(whole, str):
            assert whole == reduced
            refused += 1
    assert 0 < refused < 60


class File:
    """A JPEG file as a source of pixels."""

    def __init__(self, raw: bytes, *, may_reduce: bool):
        self.raw = raw
        self.may_reduce = may_reduce
        self.size = Image.open(io.BytesIO(raw)).size
        self.asked = []

    def decode(self, reduction: int):
        self.asked.append(reduction)
        return jpeg.decode_ordinary_jpeg(
            self.raw,
            10**8,
            None,
            lambda _: None,
            reduction if self.may_reduce else 1,
        ).pixels


def both_ways(raw: bytes, side: int):
    """Return an image and its boxes rendered from the whole file and from a reduced one."""
    results = []
    for may_reduce in (False, True):
        file = File(raw, may_reduce=may_reduce)
        width, height = file.size
        boxes = np.array(
            [[0, 0, width, height], [10.3, 20.7, width / 2, height / 3]]
        )
        sample = Sample(file, boxes, {}, {}, np.random.default_rng(0))
        image, target = sample.render((side, side))
        results.append((image.int(), target["boxes"]))
    return results


def quantile_and_mean(difference: torch.Tensor) -> tuple[float, float]:
    ordered = difference.flatten().sort().values
    return float(ordered[int(0.99 * len(ordered))]), float(
        difference.float().mean()
    )


# docs/decisions/0028 states these limits
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("side", [500, 400, 250, 200, 125])
def test_reduced_decoding_differs_by_less_than_the_limit(side, subsampling):
    raw = jpeg_bytes(SCENE, subsampling=subsampling)
    (whole, boxes), (reduced, moved) = both_ways(raw, side)
    quantile, mean = quantile_and_mean((whole - reduced).abs())
    assert mean < 2.5
    assert quantile <= 15
    assert abs(float((whole - reduced).float().mean())) < 0.25
    assert float((boxes - moved).abs().max()) <= 0.5


@pytest.mark.parametrize("side", [300, 150, 100, 75])
def test_reduced_decoding_of_a_smooth_photo_differs_by_little(side):
    small = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    photo = Image.fromarray(small).resize((600, 600), Image.Resampling.BICUBIC)
    (whole, _), (reduced, _) = both_ways(jpeg_bytes(np.asarray(photo)), side)
    quantile, mean = quantile_and_mean((whole - reduced).abs())
    assert mean < 1.5
    assert quantile <= 6


def test_reduction_leaves_as_many_pixels_as_are_drawn():
    for scale in (1.5, 1, 0.6, 0.5001):
        assert reduction_for(scale) == 1
    for scale in (0.5, 0.26):
        assert reduction_for(scale) == 2
    assert reduction_for(0.25) == 4
    assert reduction_for(0.125) == 8
    assert reduction_for(0.01) == 8
