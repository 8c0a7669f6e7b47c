"""Captions fit above their pictures."""

import torch

from src.detection.captions import (
    SMALLEST_CAPTION,
    caption_size,
    shortened,
    with_caption,
)
from src.detection.drawing import LineStyle, font_size
from src.detection.fonts import BUILT_IN, text_width

LEGEND = [
    LineStyle.SOLID,
    "correct 12",
    LineStyle.DASHED,
    "false 34",
    LineStyle.DOTTED,
    "missed 56",
]


def picture(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def test_the_picture_stays_as_it_is_below_its_caption():
    image = picture(100, 200)
    captioned = with_caption(image, [["a.jpg"], ["3 boxes"]])
    assert torch.equal(captioned[:, -100:], image)
    caption = captioned[:, :-100]
    assert caption.min() < 50 and caption.max() == 255


def test_a_caption_is_not_larger_than_labels_and_shrinks_to_fit():
    assert caption_size([["a"]], 480, 640) == font_size(480, 640)
    sizes = [caption_size([LEGEND], 1000, width) for width in range(200, 900)]
    assert sizes == sorted(sizes) and sizes[0] == SMALLEST_CAPTION
    assert len(set(sizes)) > 5 and max(sizes) <= font_size(1000, 900)


def test_a_legend_fits_above_a_picture_of_320_pixels():
    captioned = with_caption(picture(320, 320), [LEGEND])
    assert (captioned[:, :-320, -4:] == 255).all()


def test_each_style_looks_different_in_the_legend():
    drawn = []
    for style in LineStyle:
        drawn.append(with_caption(picture(50, 100), [[style]], 14)[:, :-50])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


def test_a_long_name_loses_its_beginning():
    name = "a/very/long/folder/" * 20 + "image.jpg"
    short = shortened(name, 120, 12)
    assert short.startswith("...") and short.endswith("image.jpg")
    assert text_width(short, BUILT_IN, 12) <= 120
    assert shortened("a.jpg", 120, 12) == "a.jpg"
    assert shortened("a.jpg", 1, 12) == ""


def test_a_caption_shows_the_end_of_a_long_name():
    image = picture(50, 120)
    name = "a/very/long/folder/" * 5 + "image.jpg"
    other = name.replace("image", "photo")
    one = with_caption(image, [[name]], 12)
    assert not torch.equal(one, with_caption(image, [[other]], 12))


def test_narrow_pictures_have_captions_of_their_width():
    assert with_caption(picture(50, 3), [["a.jpg"], LEGEND]).shape[2] == 3
