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

_Score = float | str | bool | list[Any] | None
"""One result of an evaluator."""


class ClassEntry(TypedDict):
    """Category id and name of one label."""

    id: ClassId
    name: Text


Classes = Annotated[list[ClassEntry], Meta(min_length=1, max_length=MAX_CLASSES)]
"""Id and name of each label in order."""


class Transform(Struct):
    """One step of the preprocessing; its arguments are checked when it is built."""

    type: Annotated[str, Meta(min_length=1, max_length=200)]


class Notes(Struct):
    """The entry `meta` of a checkpoint; a file of D-FINE has none."""

    classes: Classes | None = None
    config: Annotated[str, Meta(max_length=1 << 20)] | None = None
    epoch: Count | None = None
    score: Finite | None = None
    metric: Text | None = None
    metrics: dict[str, _Score | dict[str, _Score]] | None = None
    threshold: Fraction | None = None
    preprocessing: list[Transform] | None = None
    input_size: list[Side] | None = None
    commit: Text | None = None
    command: Annotated[str, Meta(max_length=1 << 22)] | None = None
    torch: Text | None = None
    started: Text | None = None
    licences: list[Text] = []

    def __post_init__(self) -> None:
        if self.input_size and len(self.input_size) != 2:
            raise ValueError("Expected `(height, width)`")


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


ADVICE = "the file is damaged or was changed; use another copy of it"
"""Advice about a checkpoint whose notes are wrong."""
