"""Schema of the notes in a checkpoint: what it says about its model besides the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypedDict

from msgspec import Meta, Struct

from ..core.errors import CheckpointError
from ..core.schemas import Count, Finite, Fraction, Side, Text, checked

MAX_CLASSES = 100_000
"""Maximum number of classes of a model."""

ClassId = Annotated[int, Meta(ge=-1, le=2**53)]
"""Category id of a data set; -1 marks a label without a class."""


BitDepth = Annotated[int, Meta(ge=8, le=16)]
"""Number of bits that the samples of 16-bit images use."""


class ClassEntry(TypedDict):
    """Category id and name of one label."""

    id: ClassId
    name: Text


Classes = Annotated[
    list[ClassEntry], Meta(min_length=1, max_length=MAX_CLASSES)
]
"""Id and name of each label in order."""


class Transform(Struct):
    """One step of the preprocessing; its arguments are checked when it is built."""

    type: Annotated[str, Meta(min_length=1, max_length=200)]


class Notes(Struct):
    """The entry `meta` of a checkpoint; a file of D-FINE has none."""

    classes: Classes | None = None
    config: Annotated[str, Meta(max_length=1 << 20)] | None = None
    family: Text | None = None
    epoch: Count | None = None
    score: Finite | None = None
    metric: Text | None = None
    metrics: dict[str, Any] | None = None
    threshold: Fraction | None = None
    preprocessing: list[Transform] | None = None
    input_size: list[Side] | None = None
    bit_depth: BitDepth | None = None
    commit: Text | None = None
    command: Annotated[str, Meta(max_length=1 << 22)] | None = None
    torch: Text | None = None
    started: Text | None = None
    licences: list[Text] = []

    def __post_init__(self) -> None:
        if self.input_size and len(self.input_size) != 2:
            raise ValueError("Expected `(height, width)` as input_size")
        refuse_repeated_ids(self.classes or [])
        for name, value in (self.metrics or {}).items():
            if not _is_plain(value):
                raise ValueError(
                    f"Expected `numbers and texts` as metrics.{name}"
                )


def refuse_repeated_ids(classes: list[ClassEntry]) -> None:
    """Check that no two labels have the same category id, except -1.

    Raises:
        ValueError: as msgspec expects it of a schema.
    """
    ids = [entry["id"] for entry in classes if entry["id"] != -1]
    if len(set(ids)) < len(ids):
        raise ValueError("Expected `a different id for each of the classes`")


def checked_notes(path: str | Path, notes: Any) -> dict[str, Any]:
    """Return the notes of a checkpoint after checking each entry.

    Args:
        path: the file, for messages.
        notes: its entry `meta`; None if there is none.

    Raises:
        CheckpointError: for the first entry that has the wrong type or is out of range.
    """
    if notes is None:
        return {}
    if not isinstance(notes, dict):
        raise CheckpointError(
            f"{path}: meta is a {type(notes).__name__}, expected a mapping; {ADVICE}"
        )
    checked(notes, Notes, file=path, part="meta", advice=ADVICE)
    return notes


def _is_plain(value: Any) -> bool:
    """Return whether a result of an evaluator consists of what JSON can store."""
    if isinstance(value, dict):
        keys_are_texts = all(isinstance(key, str) for key in value)
        return keys_are_texts and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


ADVICE = "the file is damaged or was changed; use another copy of it"
"""Advice about a checkpoint whose notes are wrong."""
