"""Fonts for class names in all scripts, without a font in this repository."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

from PIL import ImageFont

from ..runtime.log import logger

SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "NotoSansSC-Regular.otf",
    "NotoSansSC-Regular.ttf",
    "SourceHanSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "uming.ttc",
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "Arial Unicode.ttf",
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
)
"""Files that Pillow searches in the font folders of the system, for characters that its own font lacks.

Fonts with Chinese, Japanese and Korean characters come first, then fonts with other scripts.
"""

BUILT_IN = ""
"""Name of the font that Pillow contains."""

PROBE_SIZE = 16
"""Font size with which glyphs are looked up."""

NO_CHARACTER = "\uffff"
"""Unicode reserves this code, so fonts show their sign for a missing glyph."""

_warned_about: list[str] = []
"""The text of the warning about missing characters, once it was logged."""

ADVICE = "install a font that has them, for example: apt install fonts-noto-cjk"


@lru_cache(maxsize=4096)
def drawable(text: str) -> tuple[str, str]:
    """Choose a font for a text.

    If no font has all characters, the missing ones lose their accents or become "?", and the first text with
    such a "?" is logged as a warning.

    Args:
        text: one line.

    Returns:
        The text to draw, and the name of its font for `font_of_size`.
    """
    best = BUILT_IN
    missing = _missing(text, BUILT_IN)
    for name in SYSTEM_FONTS if missing else ():
        if not _is_installed(name):
            continue
        other = _missing(text, name)
        if len(other) < len(missing):
            best = name
            missing = other
        if not missing:
            break
    shown = "".join(
        _replacement(sign, best) if sign in missing else sign for sign in text
    )
    if shown.count("?") > text.count("?"):
        _warn_once(text)
    return shown, best


@lru_cache(maxsize=256)
def font_of_size(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font from its name.

    Args:
        name: result of `drawable`.
        size: font size in pixels.
    """
    if name == BUILT_IN:
        # Pillow 10.1 and newer scale this font; wheels always contain FreeType
        font = ImageFont.load_default(size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    return ImageFont.truetype(name, size)


@lru_cache(maxsize=8192)
def text_width(text: str, name: str, size: int) -> int:
    """Return the width of a text in pixels, rounded up."""
    return int(font_of_size(name, size).getlength(text)) + 1


@lru_cache(maxsize=64)
def _is_installed(name: str) -> bool:
    """Return whether Pillow finds a font file."""
    try:
        ImageFont.truetype(name, PROBE_SIZE)
    except OSError:
        return False
    return True


def _missing(text: str, name: str) -> set[str]:
    """Return the characters of a text that a font does not have."""
    return {sign for sign in set(text) if not _has_glyph(sign, name)}


@lru_cache(maxsize=8192)
def _has_glyph(sign: str, name: str) -> bool:
    """Return whether a font has a character: it looks different from the sign for a missing glyph."""
    if sign.isspace() or sign == "?":
        return True
    return _glyph(sign, name) != _glyph(NO_CHARACTER, name)


def _glyph(sign: str, name: str) -> tuple[tuple[int, int], bytes]:
    """Return the size and the pixels of a character."""
    mask = font_of_size(name, PROBE_SIZE).getmask(sign)
    return mask.size, bytes(mask)


def _replacement(sign: str, name: str) -> str:
    """Return what stands for a missing character: its letter without accents, or "?"."""
    parts = unicodedata.normalize("NFKD", sign)
    base = "".join(part for part in parts if not unicodedata.combining(part))
    return base if base and not _missing(base, name) else "?"


def _warn_once(text: str) -> None:
    """Log the first text that cannot be drawn."""
    if _warned_about:
        return
    _warned_about.append(text)
    logger.warning(
        "no installed font has all characters of %r; pictures show '?' for the missing ones. To see them, %s",
        text,
        ADVICE,
    )
