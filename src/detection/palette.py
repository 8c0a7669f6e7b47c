"""Colours of classes in pictures, and the colour of text on them."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]
"""Red, green and blue in 0..255 (sRGB)."""

BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)

PALETTE: tuple[Colour, ...] = (
    (0x00, 0xA0, 0xFF),
    (0x98, 0x00, 0x00),
    (0x00, 0xFF, 0x00),
    (0xFF, 0x00, 0xF0),
    (0xFF, 0x90, 0x18),
    (0x58, 0x00, 0xC0),
    (0x00, 0x68, 0x00),
    (0x58, 0xB0, 0x58),
    (0x08, 0xF0, 0xE0),
    (0xFF, 0xA0, 0xFF),
    (0xA8, 0x00, 0x90),
    (0x00, 0x60, 0x90),
    (0xE8, 0x60, 0x90),
    (0xD8, 0xE0, 0x60),
    (0xB0, 0x70, 0xFF),
    (0x00, 0x40, 0xFF),
    (0xA0, 0xC0, 0xFF),
    (0x68, 0x38, 0x70),
    (0x78, 0x58, 0x10),
    (0x00, 0xA0, 0xA8),
)
"""Colours of the first classes.

Each colour is the one that is farthest from all colours before it in OKLab, so the first colours differ most.
The minimum distance of two colours is 0.13. Text in black or white has a contrast of at least 6.5 on each.
"""

GOLDEN_RATIO = 0.618034
LIGHTNESS_LEVELS = (0.4, 0.55, 0.7)
"""HLS lightness of the colours after the palette, in turn."""


def class_colour(label: int) -> Colour:
    """Return the colour of a class, which depends only on its label.

    Example:
        >>> class_colour(0)
        (0, 160, 255)
    """
    if 0 <= label < len(PALETTE):
        return PALETTE[label]
    hue = label * GOLDEN_RATIO % 1
    lightness = LIGHTNESS_LEVELS[label % len(LIGHTNESS_LEVELS)]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> Colour:
    """Return black or white, whichever has the higher contrast with the background.

    Example:
        >>> text_colour((255, 255, 0)), text_colour((0, 0, 255))
        ((0, 0, 0), (255, 255, 255))
    """
    on_black = contrast(background, BLACK)
    on_white = contrast(background, WHITE)
    return BLACK if on_black >= on_white else WHITE


def contrast(one: Colour, other: Colour) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio").

    Example:
        >>> round(contrast(BLACK, WHITE), 3)
        21.0
    """
    luminances = sorted((relative_luminance(one), relative_luminance(other)))
    return (luminances[1] + 0.05) / (luminances[0] + 0.05)


def relative_luminance(colour: Colour) -> float:
    """Return the relative luminance of a colour, 0 to 1 (WCAG 2.2, "relative luminance")."""
    red, green, blue = (_linear(value / 255) for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(value: float) -> float:
    """Return a linear channel value from an sRGB one; both are 0..1."""
    if value <= 0.04045:
        return value / 12.92
    return ((value + 0.055) / 1.055) ** 2.4
