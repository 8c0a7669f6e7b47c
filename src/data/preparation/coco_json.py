"""Annotation files written record by record: those that did not change go as they came, byte for byte."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

import msgspec

from ..dataset.coco_records import LISTS


def write_records(file: BinaryIO, content: dict[str, Any]) -> None:
    """Write what `coco_records.split_records` took apart; records may have become plain values. NaN, which is no JSON, becomes null."""
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
    except (UnicodeEncodeError, OverflowError):  # half a character, or a whole number beyond 64 bits
        return json.dumps(value).encode()
