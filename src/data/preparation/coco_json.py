"""Writing of annotation files record by record; unchanged records are copied byte for byte."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import msgspec

from ..dataset.annotation_text import LISTS


def write_records(file: BinaryIO, content: dict[str, Any]) -> None:
    """Write the result of `annotation_text.split_records`, whose records may have become plain values.

    NaN, which is not JSON, becomes null.
    """
    for number, (key, value) in enumerate(content.items()):
        file.write((b",\n" if number else b"{") + encoded(key) + b": ")
        if key in LISTS:
            file.write(b"[\n")
            for position, record in enumerate(value):
                file.write((b",\n" if position else b"") + encoded(record))
            file.write(b"\n]")
        else:
            file.write(encoded(value))
    file.write(b"}\n")


def encoded(value: Any) -> bytes:
    """Return a record or a value as JSON."""
    if isinstance(value, msgspec.Raw):
        return bytes(value)
    try:
        return msgspec.json.encode(value)
    except (UnicodeEncodeError, OverflowError):
        # a lone surrogate, or an integer beyond 64 bits
        return json.dumps(value).encode()
