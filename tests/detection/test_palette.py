"""Colours of classes, and black or white text on them."""

import itertools

import numpy as np
import pytest

from src.detection.palette import (
    BLACK,
    PALETTE,
    WHITE,
    class_colour,
    contrast,
    relative_luminance,
    text_colour,
)


def oklab(colour: tuple[int, int, int]) -> np.ndarray:
    """Convert an sRGB colour to OKLab (Ottosson, "A perceptual color space for image processing", 2020)."""
    values = np.array(colour) / 255
    linear = np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )
    to_lms = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.array(to_lab) @ np.cbrt(np.array(to_lms) @ linear)


def least_distance(count: int) -> float:
    """Return the minimum distance of two of the first colours in OKLab."""
    colours = [oklab(class_colour(label)) for label in range(count)]
    pairs = itertools.combinations(colours, 2)
    return min(float(np.linalg.norm(one - other)) for one, other in pairs)


def test_the_first_twenty_colours_can_be_distinguished():
    assert len(PALETTE) == 20 and least_distance(20) > 0.12


def test_the_first_colours_differ_most():
    assert least_distance(4) > 0.3 and least_distance(8) > 0.2


def test_every_number_of_classes_has_colours():
    colours = [class_colour(label) for label in range(400)]
    assert len(set(colours)) == 400
    assert colours == [class_colour(label) for label in range(400)]
    assert all(0 <= value <= 255 for value in np.ravel(colours))
    assert class_colour(-1) == class_colour(-1)


@pytest.mark.parametrize(
    ("background", "expected"),
    [
        (WHITE, BLACK),
        (BLACK, WHITE),
        ((255, 255, 0), BLACK),
        ((0, 0, 255), WHITE),
        ((88, 0, 192), WHITE),  # violet
    ],
)
def test_text_is_black_or_white_whichever_has_more_contrast(
    background, expected
):
    assert text_colour(background) == expected


def test_text_is_readable_on_every_colour():
    for label in range(400):
        colour = class_colour(label)
        minimum = 6.5 if label < len(PALETTE) else 4.5
        assert contrast(colour, text_colour(colour)) >= minimum


def test_luminance_and_contrast_are_those_of_the_standard():
    assert relative_luminance((255, 0, 0)) == pytest.approx(0.2126)
    assert relative_luminance((10, 10, 10)) == pytest.approx(10 / 255 / 12.92)
    assert contrast(WHITE, (119, 119, 119)) == pytest.approx(4.48, abs=0.01)
    assert contrast(BLACK, WHITE) == contrast(WHITE, BLACK) == 21
