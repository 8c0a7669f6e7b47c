"""Annotation files of Pascal VOC: XML of untrusted origin, and the objects in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from ...core.errors import DataError
from ...core.paths import open_regular
from ...runtime.limits import is_system_limit

LARGEST_FILE = 16_000_000
"""Maximum size of an annotation file in bytes."""


class VocObject(NamedTuple):
    """An object of an annotation file."""

    name: str
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as in the file."""
    difficult: bool


def parse_xml(path: Path) -> ElementTree.Element:
    """Parse an annotation file; document types, and therefore entities, are refused.

    Raises:
        DataError: if the file cannot be parsed; the message does not contain the file name.
    """

    def refuse(*_: object) -> None:
        raise DataError(
            "has a document type (DTD), which annotation files do not need; it was not read"
        )

    try:
        with open_regular(path) as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as error:
        if is_system_limit(error):
            raise
        raise DataError(f"cannot be read: {error.strerror or error}") from None
    if len(raw) > LARGEST_FILE:
        raise DataError(f"is larger than {LARGEST_FILE} bytes")
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        what = expat.ErrorString(error.code)
        raise DataError(
            f"is not valid XML: {what}, line {error.lineno} column {error.offset + 1}"
        ) from None
    except (LookupError, ValueError) as error:
        raise DataError(f"is not valid XML: {error}") from None
    return builder.close()


def text_of(node: ElementTree.Element, path: str) -> str:
    """Return the text of a node below another one, or an empty text."""
    return (node.findtext(path) or "").strip()


def objects_in(tree: ElementTree.Element) -> Iterator[VocObject]:
    """Yield the objects of an annotation file.

    Raises:
        DataError: if an object has no name, or not exactly one box.
    """
    nodes = [node for node in tree if node.tag.lower() == "object"]
    for number, node in enumerate(nodes, 1):
        name = " ".join(text_of(node, "name").split())
        if not name:
            raise DataError(f"object {number} has no name")
        place = f"object {number} ({name[:40]})"
        boxes = len(node.findall("bndbox"))
        if boxes > 1:
            raise DataError(f"{place} has {boxes} bndbox, expected one")
        texts = [text_of(node, f"bndbox/{key}") for key in _CORNERS]
        box = _corners(texts)
        if box is None:
            raise DataError(
                f"{place}: bndbox is {', '.join(texts)[:80]}, expected xmin, ymin, xmax, ymax"
            )
        difficult = text_of(node, "difficult") not in ("0", "")
        yield VocObject(name, box, difficult)


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _corners(texts: Sequence[str]) -> tuple[float, float, float, float] | None:
    """Return the four numbers that texts contain, or None if they are not numbers or absurdly large."""
    try:
        x1, y1, x2, y2 = map(float, texts)
    except ValueError:
        return None
    corners = (x1, y1, x2, y2)
    if all(abs(value) < 1e9 for value in corners):  # False for NaN
        return corners
    return None
