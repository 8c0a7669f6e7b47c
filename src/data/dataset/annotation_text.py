"""The text of an annotation file, split into its lists of records, which are not parsed yet.

This part knows JSON and encodings, but neither records nor their faults.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import DataError
from ...core.paths import (
    decode_text,
    did_you_mean_file,
    files_inside,
    open_regular,
)
from ...runtime.limits import is_system_limit

_PIECE_BYTES = 1 << 20
"""Length of the pieces in which a text is checked for valid UTF-8."""

LISTS = ("images", "annotations", "categories")
"""The lists that every COCO file has."""


def read_annotation_file(path: Path) -> bytes:
    """Return the bytes of a file as UTF-8 without a byte order mark.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            raw = file.read()
    except OSError as error:
        if is_system_limit(error):
            raise
        missing = isinstance(error, FileNotFoundError)
        hint = (
            did_you_mean_file(path) if missing else files_inside(path, "*.json")
        )
        reason = error.strerror or error
        raise DataError(
            f"annotation file {path} cannot be read: {reason}{hint}"
        ) from None
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # some editors on Windows write UTF-16
        text = decode_text(raw, errors="surrogatepass")
        return text.encode("utf-8", "surrogatepass")
    return raw.removeprefix(codecs.BOM_UTF8)


def split_records(raw: bytes, path: Path) -> dict[str, Any]:
    """Split a file into its keys, and the three lists of COCO into records that are not parsed yet.

    Returns:
        For each key a `msgspec.Raw`, for the lists a list of them. A file that only a tolerant parser accepts
        (for example with NaN) is returned as plain values.

    Raises:
        DataError: if the file is not JSON, or if a list is missing.
    """
    try:
        refuse_other_than_utf8(raw)
        content: dict[str, Any] = _decode_keys(raw)
        for key in LISTS:
            content[key] = _decode_list(content[key])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return parse_plainly(raw, path)
    return content


_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def parse_record(record: Any) -> Any:
    """Return a record of `split_records` as plain values."""
    if isinstance(record, msgspec.Raw):
        return json.loads(bytes(record))
    return record


def refuse_other_than_utf8(raw: bytes) -> None:
    """Raise `UnicodeDecodeError` for text that is not UTF-8.

    The parser does not notice this in values that it skips. The text is decoded in pieces to save memory.
    """
    if raw.isascii():
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(raw)
    for start in range(0, len(raw), _PIECE_BYTES):
        decoder.decode(view[start : start + _PIECE_BYTES])
    decoder.decode(b"", final=True)


def parse_plainly(
    raw: bytes,
    path: Path,
    lists: Sequence[str] = LISTS,
) -> dict[str, Any]:
    """Parse a whole file with a tolerant parser, which accepts NaN, and check that it has the lists.

    Raises:
        DataError: if the file is not JSON, or if a list is missing.
    """
    try:
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        what = f"{error.msg}, line {error.lineno} column {error.colno}"
        if not raw.strip():
            what = "the file is empty"
        raise DataError(f"{path} is not valid JSON: {what}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not valid JSON: not UTF-8 at byte {error.start}"
        ) from None
    except RecursionError:
        raise DataError(
            f"{path} is not valid JSON: nested too deeply"
        ) from None
    except ValueError as error:  # a number with thousands of digits
        raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise DataError(
            f"{path} contains a {kind}, expected an object with {_lists_in_words(lists)}"
        )
    for key in lists:
        if key not in content:
            found = "is missing"
        elif not isinstance(content[key], list):
            found = f"is a {type(content[key]).__name__}"
        else:
            continue
        raise DataError(
            f'{path}: "{key}" {found}, expected a list; COCO files have images, annotations and categories'
        )
    return content


def _lists_in_words(lists: Sequence[str]) -> str:
    *first, last = lists
    if not first:
        return f"a list {last}"
    return f"lists {', '.join(first)} and {last}"
