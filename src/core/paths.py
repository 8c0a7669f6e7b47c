"""Paths as users write them, and text files as other programs write them."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

NAME_SIMILARITY = 0.8
"""Similarity of names, 0 to 1, above which one may have been meant by the other."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks of files, and the encoding that it then has; UTF-32 before UTF-16, whose mark begins
alike."""


def user_path(text: str | Path) -> Path:
    """Return a path that a user wrote, in a command or a configuration: `~` is the home folder."""
    return Path(text).expanduser()


def read_text(path: str | Path, *, errors: str = "strict") -> str:
    """Return the text of a file: UTF-8, or UTF-16 or UTF-32 if it begins with their byte order mark, which is
    left out.

    Args:
        path: the file.
        errors: how bytes that are not UTF-8 are read, as for `bytes.decode`.

    Raises:
        OSError: if it cannot be read.
        UnicodeDecodeError: for other bytes, with `errors` "strict".
    """
    return decode_text(Path(path).read_bytes(), errors=errors)


def decode_text(raw: bytes, *, errors: str = "strict") -> str:
    """Return the text of a file's bytes, as `read_text` does."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            text = raw[len(mark) :] if encoding == "utf-8" else raw
            return text.decode(encoding, errors)
    return raw.decode("utf-8", errors)


def did_you_mean_file(path: str | Path) -> str:
    """Return "; did you mean 'train.json'?" for a path that does not exist, or an empty string.

    Each folder of the path is compared with what is there: slashes, letter case and Unicode forms may differ,
    or the spelling a little. A name that YAML cut at " #" is found, too.
    """
    given, path = str(path), Path(str(path).replace("\\", "/"))
    place = Path(path.anchor) if path.is_absolute() else Path()
    for part in path.parts[1:] if path.is_absolute() else path.parts:
        if (place / part).exists():
            place = place / part
            continue
        similar = similar_names(place, part) if place.is_dir() else []
        if not similar:
            return ""
        place = place / similar[0]
    return f"; did you mean '{place}'?" if str(place) != given else ""


def similar_names(folder: Path, name: str, most: int = 3) -> list[str]:
    """Return the names in a folder that may have been meant by one that is not there, best first."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    folded = folded_name(name)
    same = [other for other in names if folded_name(other) == folded]
    cut = [other for other in names if other.startswith((f"{name} #", f"{name}: "))]
    without_suffix = [other for other in names if Path(other).stem == name]
    return (same or cut or without_suffix or close_names(name, names))[:most]


def files_inside(folder: str | Path, *patterns: str) -> str:
    """Return "; it holds a.json, b.json" for a folder that was given in place of a file, or an empty
    string."""
    path = Path(folder)
    found = (
        [file.name for pattern in patterns for file in sorted(path.glob(pattern))] if path.is_dir() else []
    )
    return (
        f"; it holds {', '.join(found[:3])}{' ...' if len(found) > 3 else ''}: name the file" if found else ""
    )


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Return names that are spelled nearly like one, best first; other numbers mean other files."""
    digits = re.findall(r"\d+", name)
    candidates = [other for other in names if re.findall(r"\d+", other) == digits]
    return difflib.get_close_matches(name, candidates, n=3, cutoff=NAME_SIMILARITY)


def folded_name(name: str) -> str:
    """Return a name as names compare: with slashes, in one Unicode form, without letter case and percent
    signs."""
    text = unquote(name) if "%" in name else name
    return unicodedata.normalize("NFC", text.replace("\\", "/")).casefold().removeprefix("./")
