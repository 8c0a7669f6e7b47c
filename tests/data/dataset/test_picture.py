"""A picture has the same pixels on every way into a model."""

import ast
import inspect

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import picture
from src.data.dataset.decoding import (
    ImageError,
    image_size,
    inspect_image,
    inspect_pil,
    load_image,
)
from src.data.dataset.header_scan import scan_images
from src.data.dataset.picture import ImageFlag, PictureError, read_picture
from tests.fixtures.pictures import (
    ALPHA,
    GREY,
    HEIGHT,
    REFUSED,
    RGB,
    WIDTH,
    insert_segments,
    write_modes,
    write_orientations,
    xmp_with,
)


def pixels(path, **settings) -> np.ndarray:
    """Return the pixels that training uses, `[H, W, 3]`."""
    return load_image(path, **settings).permute(1, 2, 0).numpy()


def from_pil(image: Image.Image, **settings) -> np.ndarray:
    """Return the pixels of a Pillow image, `[H, W, 3]`."""
    return inspect_pil(image, **settings)[0].permute(1, 2, 0).numpy()


def test_module_needs_only_pillow_and_numpy():
    tree = ast.parse(inspect.getsource(picture))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            used.add(node.module)
            assert node.level == 0
    standard = {
        "__future__",
        "collections.abc",
        "re",
        "enum",
        "pathlib",
        "typing",
    }
    assert used - standard == {"PIL", "numpy"}


def test_a_file_and_its_pillow_image_have_equal_pixels_in_all_modes(tmp_path):
    paths = write_modes(tmp_path)
    assert len(paths) > 30
    for name, path in paths.items():
        if name in REFUSED:
            continue
        expected = pixels(path)
        assert expected.shape == (HEIGHT, WIDTH, 3), name
        with Image.open(path) as image:
            assert np.array_equal(from_pil(image), expected), name
        assert np.array_equal(read_picture(path), expected), name


@pytest.mark.parametrize("name", REFUSED)
def test_modes_without_a_range_are_refused_on_all_ways(tmp_path, name):
    path = write_modes(tmp_path)[name]
    with pytest.raises(ImageError, match="floating-point"):
        load_image(path)
    with pytest.raises(ImageError, match="floating-point"):
        inspect_pil(Image.open(path))
    with pytest.raises(PictureError, match="floating-point"):
        read_picture(path)


@pytest.mark.parametrize("mode", ["HSV", "RGBa", "La", "RGBX", "I;16L"])
def test_modes_of_pillow_without_a_file_format_are_converted(mode):
    rgba = Image.fromarray(np.dstack([RGB, ALPHA]))
    source = {"RGBa": "RGBA", "La": "LA", "I;16L": "L"}.get(mode, "RGB")
    if mode == "I;16L":
        deep = (GREY.astype("<u2") * 257).tobytes()
        image = Image.frombytes(mode, (WIDTH, HEIGHT), deep)
    else:
        image = rgba.convert(source).convert(mode)
    expected = from_pil(
        Image.fromarray(GREY) if source == "L" else rgba.convert(source)
    )
    difference = abs(from_pil(image).astype(int) - expected)
    # HSV and premultiplied colours have fewer levels
    assert difference.max() <= {"HSV": 6, "RGBa": 3, "La": 3}.get(mode, 0)


@pytest.mark.parametrize("name", ["nir.tif", "nir_without_tag.tif"])
def test_bands_besides_the_colours_are_dropped_and_flagged(tmp_path, name):
    path = write_modes(tmp_path)[name]
    found, flags = inspect_image(path)
    assert np.array_equal(found.permute(1, 2, 0).numpy(), RGB)
    assert flags == ImageFlag.EXTRA_BANDS
    scan = scan_images([str(path)], np.array([[WIDTH, HEIGHT]]))
    assert scan.with_flag(ImageFlag.EXTRA_BANDS) == [0]
    assert scan.found_flags() == [ImageFlag.EXTRA_BANDS]


@pytest.mark.parametrize("name", ["RGBA.tif", "RGBa.tif", "LA.tif", "RGB.png"])
def test_transparency_and_colours_are_no_extra_bands(tmp_path, name):
    _, flags = inspect_image(write_modes(tmp_path)[name])
    assert flags == ImageFlag(0)


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_the_same_wherever_it_is_stored(tmp_path, orientation):
    upright = (WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH)
    for name, path in write_orientations(tmp_path, orientation).items():
        seen = pixels(path)
        assert seen.shape[1::-1] == upright, name
        assert image_size(path) == ((WIDTH, HEIGHT), upright), name
        if not name.endswith("jpg"):
            method = picture._TO_UPRIGHT.get(orientation)
            expected = Image.fromarray(RGB)
            if method is not None:
                expected = expected.transpose(method)
            assert np.array_equal(seen, np.asarray(expected)), name
        with Image.open(path) as image:
            assert np.array_equal(from_pil(image), seen), name
        assert np.array_equal(read_picture(path), seen), name
        scan = scan_images([str(path)], np.array([upright]))
        assert scan.contradictions(np.array([upright])) == {}, name


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_labels_of_the_stored_pixels_keep_them_wherever_it_is_stored(
    tmp_path, orientation
):
    size = (WIDTH, HEIGHT)
    for name, path in write_orientations(tmp_path, orientation).items():
        found, flags = inspect_image(path, size)
        assert flags == ImageFlag.NOT_ROTATED, name
        if not name.endswith("jpg"):
            stored = found.permute(1, 2, 0).numpy()
            assert np.array_equal(stored, RGB), name
        scan = scan_images([str(path)], np.array([size]))
        assert scan.contradictions(np.array([size])) == {}, name


def test_exif_counts_if_xmp_contradicts_it_and_the_image_is_flagged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "both.jpg"
    for other, flag in ((6, ImageFlag(0)), (3, ImageFlag.TWO_ORIENTATIONS)):
        Image.fromarray(RGB).save(path, exif=exif, xmp=xmp_with(other))
        found, flags = inspect_image(path)
        assert flags == ImageFlag.ROTATED | flag
        assert found.shape[1:] == (WIDTH, HEIGHT)
        scan = scan_images([str(path)], np.array([[HEIGHT, WIDTH]]))
        expected = [0] if flag else []
        assert scan.with_flag(ImageFlag.TWO_ORIENTATIONS) == expected


def test_ordinary_jpeg_with_long_segments_is_decoded_by_torchvision(
    tmp_path, monkeypatch
):
    path = tmp_path / "plain.jpg"
    Image.fromarray(RGB).save(path, xmp=b"<x:xmpmeta/>")
    insert_segments(path, b"ICC_PROFILE\0\1\1" + bytes(60000), 3)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("Pillow is used"))
    load_image(path)


# ---- bits ----


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_bit_depth_maps_the_largest_value_to_white(tmp_path, depth):
    white = (1 << depth) - 1
    grey = np.linspace(0, white, 40).round().astype(np.uint16)[None]
    path = tmp_path / "deep.png"
    Image.fromarray(grey).save(path)
    found = pixels(path, bit_depth=depth)[..., 0].astype(float)
    assert abs(found - grey * (255 / white)).max() <= 0.5
    with Image.open(path) as image:
        assert np.array_equal(from_pil(image, bit_depth=depth)[..., 0], found)


def test_bit_depth_is_an_integer_from_8_to_16_or_none():
    usable = [None, 8, 12, 16]
    unusable = [7, 17, 0, 12.0, True, "12"]
    assert all(map(picture.is_bit_depth, usable))
    assert not any(map(picture.is_bit_depth, unusable))


def test_values_beyond_the_bit_depth_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 4096]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(
        ImageError,
        match="has values up to 4096, but bit_depth=12 allows only 4095",
    ):
        load_image(tmp_path / "a.png", bit_depth=12)


def test_bit_depth_does_not_change_8_bits_and_is_refused_for_16_bit_colours(
    tmp_path,
):
    paths = write_modes(tmp_path)
    assert np.array_equal(pixels(paths["L.png"], bit_depth=12)[..., 0], GREY)
    with pytest.raises(ImageError, match="16 bits per colour"):
        load_image(paths["RGB48.png"], bit_depth=12)


@pytest.mark.parametrize(
    ("white", "flag"),
    [
        (4095, ImageFlag.LOW_RANGE),
        (65535, ImageFlag.FULL_RANGE),
        (0, ImageFlag.FULL_RANGE),
    ],
)
def test_small_range_of_16_bit_samples_is_flagged(tmp_path, white, flag):
    grey = np.array([[0, white]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    _, flags = inspect_image(tmp_path / "a.png")
    assert flags == ImageFlag.SIXTEEN_BIT | flag
