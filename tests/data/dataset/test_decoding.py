"""Image files are read as people see them, whatever their mode."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.dataset import jpeg
from src.data.dataset.decoding import (
    MAX_PIXELS,
    ImageError,
    ImageFlag,
    ImageSizeError,
    image_size,
    inspect_image,
    load_image,
)

RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
GREY = RGB[..., 0]
SMOOTH = np.stack(
    [
        np.add.outer(np.arange(24) * 5, np.arange(36) * 2),
        np.add.outer(np.arange(24) * 2, np.arange(36) * 5),
        np.full((24, 36), 90),
    ],
    -1,
).astype(np.uint8)
"""Without sharp edges, so that JPEG keeps it."""


def load(path: Path, *expected) -> np.ndarray:
    """Return the pixels of an image, `[H, W, 3]`."""
    image = load_image(path, *expected)
    assert image.dtype == torch.uint8
    return image.permute(1, 2, 0).numpy()


def saved(
    folder: Path, image: Image.Image, name: str = "image.png", **settings
) -> Path:
    image.save(folder / name, **settings)
    return folder / name


def refused(path: Path, *expected) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(path, *expected)
    return str(caught.value).replace(str(path), "FILE")


def png(
    path: Path, width: int, height: int, depth: int, colour: int, rows: bytes
) -> Path:
    """Write a PNG file by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def grey_as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


# ---- modes ----


def test_rgb_is_read_as_it_is(tmp_path):
    assert np.array_equal(load(saved(tmp_path, Image.fromarray(RGB))), RGB)


def test_grey_gives_three_equal_channels(tmp_path):
    assert np.array_equal(
        load(saved(tmp_path, Image.fromarray(GREY))), grey_as_rgb(GREY)
    )


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_brightness(tmp_path, suffix):
    path = saved(
        tmp_path,
        Image.fromarray(GREY.astype(np.uint16) * 257),
        f"image.{suffix}",
    )
    assert np.array_equal(load(path), grey_as_rgb(GREY))


def test_16_bit_grey_is_rounded_to_the_nearest_level(tmp_path):
    deep = (
        np.random.default_rng(1).integers(0, 65536, (20, 20)).astype(np.uint16)
    )
    assert (
        abs(
            load(saved(tmp_path, Image.fromarray(deep))).astype(float)
            - deep[..., None] / 257
        ).max()
        <= 0.5
    )


def test_16_bit_rgb_is_within_one_level(tmp_path):
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in RGB)
    path = png(tmp_path / "deep.png", 36, 24, 16, 2, rows)
    assert abs(load(path).astype(int) - RGB).max() <= 1


def test_32_bit_values_within_16_bits_are_scaled(tmp_path):
    path = saved(
        tmp_path, Image.fromarray(GREY.astype(np.int32) * 257), "image.tif"
    )
    assert np.array_equal(load(path), grey_as_rgb(GREY))


def test_32_bit_values_beyond_16_bits_are_refused(tmp_path):
    path = saved(
        tmp_path,
        Image.fromarray(np.array([[0, 70_000]], np.int32)),
        "image.tif",
    )
    assert (
        refused(path)
        == "image FILE has 32-bit values from 0 to 70000; convert it to 8 or 16 bits"
    )


def test_floating_point_values_are_refused(tmp_path):
    path = saved(
        tmp_path,
        Image.fromarray(
            np.random.default_rng(0).random((4, 4)).astype(np.float32)
        ),
        "image.tif",
    )
    assert (
        refused(path)
        == "image FILE has floating-point values without a defined range; convert it to 8 or 16 bits"
    )


def test_palette_is_looked_up(tmp_path):
    image = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(
        load(saved(tmp_path, image)), np.array(image.convert("RGB"))
    )


def test_one_bit_is_black_and_white(tmp_path):
    bits = GREY > 127
    assert np.array_equal(
        load(saved(tmp_path, Image.fromarray(bits))),
        grey_as_rgb(bits * np.uint8(255)),
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composed_on_white(tmp_path, mode):
    alpha = np.tile(np.linspace(0, 255, 36).astype(np.uint8), (24, 1))
    base = RGB if mode == "RGBA" else grey_as_rgb(GREY)
    image = Image.fromarray(base).convert(mode)
    image.putalpha(Image.fromarray(alpha))
    share = alpha[..., None] / 255
    assert (
        abs(
            load(saved(tmp_path, image)) - (base * share + 255 * (1 - share))
        ).max()
        <= 1
    )


def test_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (4, 2), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (2, 0, 4, 2))
    pixels = load(saved(tmp_path, image, transparency=0))
    assert (pixels[0, 0].tolist(), pixels[0, 3].tolist()) == (
        [255, 255, 255],
        [0, 0, 255],
    )


def test_transparent_colour_of_an_rgb_file_becomes_white(tmp_path):
    image = Image.new("RGB", (4, 2), (9, 9, 9))
    image.paste((0, 0, 200), (2, 0, 4, 2))
    pixels = load(saved(tmp_path, image, transparency=(9, 9, 9)))
    assert (pixels[0, 0].tolist(), pixels[0, 3].tolist()) == (
        [255, 255, 255],
        [0, 0, 200],
    )


def test_cmyk_is_within_three_levels_of_what_pillow_shows(tmp_path):
    path = saved(
        tmp_path,
        Image.fromarray(SMOOTH).convert("CMYK"),
        "image.jpg",
        quality=95,
    )
    assert abs(load(path).astype(int) - SMOOTH).max() <= 3


def test_colour_jpeg_is_that_of_pillow(tmp_path):
    path = saved(tmp_path, Image.fromarray(SMOOTH), "image.jpg", quality=95)
    assert abs(load(path).astype(int) - np.array(Image.open(path))).max() <= 1


@pytest.mark.parametrize(
    "settings",
    [{"progressive": True}, {"subsampling": 2}, {"optimize": True}],
    ids=str,
)
def test_every_kind_of_colour_jpeg_is_read(tmp_path, settings):
    assert (
        abs(
            load(
                saved(
                    tmp_path,
                    Image.fromarray(SMOOTH),
                    "image.jpg",
                    quality=98,
                    **settings,
                )
            ).astype(int)
            - SMOOTH
        ).max()
        <= 8
    )


def test_grey_jpeg_gives_three_channels(tmp_path):
    path = saved(
        tmp_path, Image.fromarray(SMOOTH[..., 0]), "image.jpg", quality=95
    )
    assert abs(load(path).astype(int) - grey_as_rgb(SMOOTH[..., 0])).max() <= 3


def test_jpeg_is_read_without_torchvisions_decoder_too(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(SMOOTH), "image.jpg", quality=95)
    monkeypatch.setattr(jpeg, "decode_jpeg", None)
    assert np.array_equal(load(path), np.array(Image.open(path)))


def test_suffix_does_not_decide_the_format(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "image.jpg", format="PNG")
    assert np.array_equal(load(tmp_path / "image.jpg"), RGB)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "tif", "ppm"])
def test_other_formats_are_read(tmp_path, suffix):
    assert np.array_equal(
        load(
            saved(
                tmp_path,
                Image.fromarray(RGB),
                f"image.{suffix}",
                **({"lossless": True} if suffix == "webp" else {}),
            )
        ),
        RGB,
    )


@pytest.mark.parametrize("suffix", ["gif", "png", "tif"])
def test_first_frame_of_an_animation_is_read(tmp_path, suffix):
    frames = [
        Image.new("RGB", (8, 6), colour)
        for colour in ((255, 0, 0), (0, 255, 0))
    ]
    path = saved(
        tmp_path,
        frames[0],
        f"image.{suffix}",
        save_all=True,
        append_images=frames[1:],
    )
    assert (load(path) == (255, 0, 0)).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3000, 2)])
def test_tiny_and_narrow_images_are_read(tmp_path, size):
    for name in ("image.png", "image.jpg"):
        assert load(
            saved(tmp_path, Image.new("RGB", size), name), size
        ).shape == (
            size[1],
            size[0],
            3,
        )


# ---- rotation notes ----

UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
"""From the pixels as stored to those that a viewer shows, by the note in the file (Exif 2.3, tag 274)."""


def with_note(folder: Path, orientation: int, name: str) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(
        folder,
        Image.fromarray(SMOOTH),
        name,
        exif=exif,
        **({"quality": 98} if name.endswith("jpg") else {}),
    )


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_is_turned_as_a_viewer_shows_it(tmp_path, orientation, name):
    shown, seen = (
        load(with_note(tmp_path, orientation, name)),
        UPRIGHT[orientation](SMOOTH),
    )
    assert shown.shape == seen.shape
    assert abs(shown.astype(int) - seen).max() <= (
        0 if name.endswith("png") else 8
    )


@pytest.mark.parametrize("orientation", range(5, 9))
def test_image_is_turned_when_its_labels_were_made_on_the_turned_one(
    tmp_path, orientation
):
    assert load(
        with_note(tmp_path, orientation, "image.png"), (24, 36)
    ).shape == (
        36,
        24,
        3,
    )


@pytest.mark.parametrize("orientation", range(5, 9))
def test_image_is_left_when_its_labels_were_made_on_the_pixels_as_stored(
    tmp_path, orientation
):
    assert np.array_equal(
        load(with_note(tmp_path, orientation, "image.png"), (36, 24)), SMOOTH
    )


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_size_that_fits_neither_way_is_a_contradiction(tmp_path, orientation):
    size = "24 x 36" if orientation == 6 else "36 x 24"
    assert (
        refused(with_note(tmp_path, orientation, "image.png"), (50, 50))
        == f"image FILE has {size} pixels but its labels were made for 50 x 50"
    )


def test_plain_jpeg_of_another_size_is_a_contradiction(tmp_path):
    path = saved(tmp_path, Image.fromarray(SMOOTH), "image.jpg")
    assert (
        refused(path, (24, 36))
        == "image FILE has 36 x 24 pixels but its labels were made for 24 x 36"
    )


def test_contradictions_are_distinguished_from_damage(tmp_path):
    with pytest.raises(ImageSizeError):
        load_image(saved(tmp_path, Image.fromarray(SMOOTH)), (24, 36))
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "image.png", (24, 36))
    assert not isinstance(caught.value, ImageSizeError)


# ---- flags ----


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
def test_plain_image_has_no_flag(tmp_path, name):
    assert inspect_image(saved(tmp_path, Image.fromarray(RGB), name))[
        1
    ] == ImageFlag(0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_image_is_marked_unless_its_labels_want_the_pixels_as_stored(
    tmp_path, orientation
):
    path = with_note(tmp_path, orientation, "image.jpg")
    assert inspect_image(path)[1] == (
        ImageFlag.ROTATED if orientation > 1 else ImageFlag(0)
    )
    if orientation > 4:
        assert inspect_image(path, (36, 24))[1] == ImageFlag.NOT_ROTATED


def test_cmyk_is_marked(tmp_path):
    assert (
        inspect_image(
            saved(
                tmp_path, Image.fromarray(SMOOTH).convert("CMYK"), "image.jpg"
            )
        )[1]
        == ImageFlag.CMYK
    )


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_several_frames_are_marked(tmp_path, suffix):
    frames = [
        Image.new("RGB", (8, 6), colour)
        for colour in ((255, 0, 0), (0, 255, 0))
    ]
    path = saved(
        tmp_path,
        frames[0],
        f"image.{suffix}",
        save_all=True,
        append_images=frames[1:],
    )
    assert inspect_image(path)[1] == ImageFlag.SEVERAL_FRAMES
    assert inspect_image(saved(tmp_path, frames[0], f"single.{suffix}"))[
        1
    ] == ImageFlag(0)


# ---- damage ----


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("image.jpg", {}),
        ("image.jpg", {"progressive": True}),
        ("image.png", {}),
        ("image.gif", {}),
    ],
    ids=str,
)
def test_truncated_image_is_refused(tmp_path, name, settings, share):
    path = saved(
        tmp_path, Image.fromarray(np.tile(RGB, (8, 8, 1))), name, **settings
    )
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])
    assert refused(path).startswith("image FILE is damaged: ")


def test_truncated_jpeg_with_a_rotation_note_is_refused(tmp_path):
    path = with_note(tmp_path, 6, "image.jpg")
    raw = path.read_bytes()
    path.write_bytes(raw[:-60])
    assert refused(path).startswith("image FILE is damaged: ")


@pytest.mark.parametrize(
    "raw",
    [b"<html>404 Not Found</html>", b"GIF", b"\x00" * 100, b"\xff\xd8\xff"],
)
def test_file_that_is_not_an_image_is_refused_with_its_first_bytes(
    tmp_path, raw
):
    (tmp_path / "image.jpg").write_bytes(raw)
    assert (
        refused(tmp_path / "image.jpg")
        == f"image FILE is not an image file (it begins with {raw[:12]!r})"
    )


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "image.jpg").touch()
    assert refused(tmp_path / "image.jpg") == "image FILE is empty (0 bytes)"


def test_missing_file_is_refused(tmp_path):
    assert (
        refused(tmp_path / "image.jpg")
        == "image FILE cannot be read: No such file or directory"
    )


def test_folder_is_refused(tmp_path):
    assert refused(tmp_path) == "image FILE cannot be read: Is a directory"


def test_garbled_images_are_read_or_refused_by_name(tmp_path):
    rng, path, refusals = np.random.default_rng(0), tmp_path / "garbled", 0
    for form in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        stream = io.BytesIO()
        Image.fromarray(RGB).save(stream, form)
        for _ in range(60):
            raw = bytearray(stream.getvalue())
            for _ in range(rng.integers(1, 10)):
                raw[rng.integers(len(raw))] = rng.integers(256)
            path.write_bytes(raw)
            try:
                load_image(path, (36, 24))
            except ImageError as error:
                assert str(path) in str(error)
                refusals += 1
    assert refusals > 60


# ---- size ----


@pytest.mark.parametrize(
    ("side", "text"),
    [
        (
            10_000,
            f"image FILE has 10000 x 10000 pixels, more than {MAX_PIXELS}; it was not decoded",
        ),
        (
            16_000,
            (
                "image FILE was not decoded: Image size "
                "(256000000 pixels) exceeds limit of 178956970 pixels, "
                "could be decompression bomb DOS attack."
            ),
        ),
    ],
)
def test_decompression_bomb_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, side, text
):
    path = png(tmp_path / "bomb.png", side, side, 8, 2, b"\0" * 1000)
    monkeypatch.setattr(
        Image.Image, "load", lambda _: pytest.fail("the image was decoded")
    )
    assert refused(path) == text


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)], ids=str)
def test_image_with_a_long_side_is_refused_because_of_the_memory_to_resize_it(
    tmp_path, monkeypatch, size
):
    path = png(tmp_path / "long.png", *size, 8, 2, b"\0" * 1000)
    monkeypatch.setattr(
        Image.Image, "load", lambda _: pytest.fail("the image was decoded")
    )
    assert (
        refused(path)
        == f"image FILE has {size[0]} x {size[1]} pixels, but a side has at most 65535; it was not decoded"
    )


def test_jpeg_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.fromarray(SMOOTH), "bomb.jpg")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"\xff\xc0") + 5
    raw[at : at + 4] = struct.pack(">HH", 10_000, 10_000)
    path.write_bytes(raw)
    monkeypatch.setattr(
        jpeg,
        "decode_jpeg",
        lambda *_, **__: pytest.fail("the image was decoded"),
    )
    assert (
        refused(path)
        == f"image FILE has 10000 x 10000 pixels, more than {MAX_PIXELS}; it was not decoded"
    )


def test_header_of_a_decompression_bomb_is_refused(tmp_path):
    path = png(tmp_path / "bomb.png", 16_000, 16_000, 8, 2, b"\0" * 1000)
    with pytest.raises(
        ImageError,
        match=f"^image {path} is too large: Image size .256000000 pixels. exceeds limit",
    ):
        image_size(path)


@pytest.mark.parametrize("name", ["image.png", "image.jpg"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, (36, 24)), (3, (36, 24)), (6, (24, 36)), (8, (24, 36))],
)
def test_header_tells_the_size_as_stored_and_upright(
    tmp_path, orientation, upright, name
):
    assert image_size(with_note(tmp_path, orientation, name)) == (
        (36, 24),
        upright,
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"<html>", "is not an image file"),
    ],
)
def test_header_of_no_image_is_refused(tmp_path, raw, reason):
    if raw is not None:
        (tmp_path / "image.png").write_bytes(raw)
    with pytest.raises(
        ImageError, match=f"^image {tmp_path / 'image.png'} {reason}$"
    ):
        image_size(tmp_path / "image.png")
