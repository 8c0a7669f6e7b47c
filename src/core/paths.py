"""Paths and files given by users: only regular files are opened, so that reading never waits for a writer."""

from __future__ import annotations

import codecs
import difflib
import errno
import os
import re
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

NAME_SIMILARITY = 0.8
"""Minimum similarity of two names, 0 to 1, for one to be suggested for the other."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks and their encodings; UTF-32 comes first, because its mark begins with that of UTF-16."""


def user_path(text: str | Path) -> Path:
    """Return the path that a user gave in a command or a configuration, with `~` expanded."""
    return Path(text).expanduser()


def user_cache() -> Path:
    """Return this project's folder in the user's cache (XDG base directory specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path.home() / ".cache"
    return base / "dfine_dinov3"


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for binary reading; a FIFO, a socket or a device is refused, which could wait forever.

    Raises:
        OSError: if the file cannot be opened or is not a regular file.
    """
    refuse_special_file(path)  # opening a device can already have an effect
    return open(path, "rb", opener=_open_regular)


def refuse_special_file(path: str | Path) -> None:
    """Check a path before a library opens it: it must not be a FIFO, a socket or a device.

    Raises:
        OSError: if the path does not exist or is such a file. A folder is left to the library.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a null character, or a surrogate
        raise OSError(
            errno.EINVAL, f"not a valid path ({error})", str(path)
        ) from None
    _refuse_special_mode(mode, path)


def _open_regular(path: str, flags: int) -> int:
    """Return a descriptor of a regular file or a folder; `open` itself refuses folders."""
    # the file may have been replaced meanwhile; O_NONBLOCK does not wait for the writer of a FIFO
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _refuse_special_mode(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _refuse_special_mode(mode: int, path: str | Path) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_text(path: str | Path, *, errors: str = "strict") -> str:
    """Return the text of a file in UTF-8, or in UTF-16 or UTF-32 if the file begins with a byte order mark.

    Args:
        path: path of the file.
        errors: error handling, as in `bytes.decode`.

    Raises:
        OSError: if the file cannot be read or is not a regular file.
        UnicodeDecodeError: if the bytes are not valid and `errors` is "strict".
    """
    with open_regular(path) as file:
        return decode_text(file.read(), errors=errors)


def decode_text(raw: bytes, *, errors: str = "strict") -> str:
    """Return the text of a file's bytes, as `read_text` does."""
    for mark, encoding in _BYTE_ORDER_MARKS:
        if raw.startswith(mark):
            text = raw[len(mark) :] if encoding == "utf-8" else raw
            return text.decode(encoding, errors)
    return raw.decode("utf-8", errors)


def did_you_mean_file(path: str | Path) -> str:
    """Return "; did you mean 'train.json'?" for a path that does not exist, or an empty string.

    Each part of the path is compared with the existing names. They may differ in slashes, letter case,
    Unicode form or slightly in spelling. Names that YAML has cut at " #" are also found.
    """
    given = str(path)
    path = Path(given.replace("\\", "/"))
    place = Path(path.anchor)
    for part in path.relative_to(place).parts:
        if (place / part).exists():
            place = place / part
            continue
        similar = similar_names(place, part) if place.is_dir() else []
        if not similar:
            return ""
        place = place / similar[0]
    return f"; did you mean '{place}'?" if str(place) != given else ""


def similar_names(folder: Path, name: str, most: int = 3) -> list[str]:
    """Return the names in a folder that are similar to one that does not exist, best first."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    folded = folded_name(name)
    same = [other for other in names if folded_name(other) == folded]
    cut = [
        other for other in names if other.startswith((f"{name} #", f"{name}: "))
    ]
    without_suffix = [other for other in names if Path(other).stem == name]
    return (same or cut or without_suffix or close_names(name, names))[:most]


def files_inside(folder: str | Path, *patterns: str) -> str:
    """Return "; it contains a.json, b.json: name the file" for a folder given instead of a file, or ""."""
    path = Path(folder)
    found: list[str] = []
    if path.is_dir():
        for pattern in patterns:
            found += [file.name for file in sorted(path.glob(pattern))]
    if not found:
        return ""
    more = " ..." if len(found) > 3 else ""
    return f"; it contains {', '.join(found[:3])}{more}: name the file"


def close_names(name: str, names: Iterable[str]) -> list[str]:
    """Return names with a similar spelling, best first. Names with different numbers are left out."""
    digits = re.findall(r"\d+", name)
    candidates = [
        other for other in names if re.findall(r"\d+", other) == digits
    ]
    return difflib.get_close_matches(
        name, candidates, n=3, cutoff=NAME_SIMILARITY
    )


def folded_name(name: str) -> str:
    """Normalize a name for comparison: slashes, Unicode form NFC, case folded, percent signs decoded."""
    text = unquote(name) if "%" in name else name
    composed = unicodedata.normalize("NFC", text.replace("\\", "/"))
    return composed.casefold().removeprefix("./")
