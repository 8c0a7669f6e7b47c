"""The classes of a teacher for those of a student: matched by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core.counts import counted
from ..core.errors import ConfigError
from ..detection.class_names import known_names, match_names
from ..detection.weight_file import WeightFile
from ..runtime.log import logger

MAX_LISTED_CLASSES = 5
"""Maximum number of classes of each side in a message."""


class ClassRows:
    """The teacher's class for each class of the student."""

    def __init__(self, rows: Tensor | None, known: Tensor | None) -> None:
        """Store the tensors; None stands for equal classes.

        Args:
            rows: row of the teacher for each class of the student, `[C]` int64.
            known: 1 for classes that the teacher has, 0 for others, `[C]` float32.
        """
        self.rows = rows
        self.known = known

    @staticmethod
    def of(rows: Sequence[int | None], theirs: int) -> ClassRows:
        """Return the mapping of a list of rows, for a teacher of `theirs` classes."""
        if list(rows) == list(range(theirs)):
            return ClassRows(None, None)
        known = [0.0 if row is None else 1.0 for row in rows]
        indices = [row or 0 for row in rows]
        return ClassRows(torch.tensor(indices), torch.tensor(known))

    def to(self, device: torch.device) -> None:
        """Move the tensors to a device."""
        if self.rows is not None and self.known is not None:
            self.rows = self.rows.to(device)
            self.known = self.known.to(device)

    def select(self, probabilities: Tensor) -> Tensor:
        """Map probabilities `[B, Q, C']` of the teacher to the student's classes, `[B, Q, C]`."""
        if self.rows is None or self.known is None:
            return probabilities
        return probabilities[..., self.rows] * self.known


def class_names_of(file: WeightFile) -> list[str] | None:
    """Return the class names of a file, or None if it has none and its number of classes tells nothing."""
    if file.classes:
        return known_names(file.named_classes)
    names = [entry["name"] for entry in file.named_classes]
    return None if names[0] == "class 0" else names


def matched_rows(
    names: Sequence[str] | None,
    num_classes: int,
    teacher_names: Sequence[str] | None,
    theirs: int,
    source: str,
) -> list[int | None]:
    """Return the teacher's row for each class of the student, or None for a class that it lacks."""
    if names is None or (teacher_names is None and num_classes == theirs):
        if names is not None:
            logger.warning(
                "distillation: %s has no class names; its %d classes are treated as those of the data",
                source,
                theirs,
            )
        shared = min(num_classes, theirs)
        return [*range(shared), *[None] * (num_classes - shared)]
    rows = match_names(names, teacher_names or [])
    found = sum(row is not None for row in rows)
    if not found:
        raise ConfigError(
            f"distillation.teacher: {source} has {_listed(teacher_names, theirs)}, none of which is a class "
            f"of the data, which has {_listed(names, len(names))}; use a teacher with these classes, or "
            f"set distillation.decoder_weight=~"
        )
    dropped = theirs - len({row for row in rows if row is not None})
    if found < len(names) or dropped:
        missing = [name for name, row in zip(names, rows) if row is None]
        without = (
            f" ({', '.join(missing[:MAX_LISTED_CLASSES])})" if missing else ""
        )
        logger.info(
            "distillation: %d of %d classes are classes of the teacher; %d%s get no class signal, and %d of "
            "the teacher's classes are not used",
            found,
            len(names),
            len(missing),
            without,
            dropped,
        )
    return [*rows, *[None] * (num_classes - len(rows))]


def _listed(names: Sequence[str] | None, count: int) -> str:
    """Return "3 classes (a, b, c)"."""
    shown = counted(count, "class", "classes")
    if not names:
        return f"{shown} without names"
    more = ", ..." if len(names) > MAX_LISTED_CLASSES else ""
    return f"{shown} ({', '.join(names[:MAX_LISTED_CLASSES])}{more})"
