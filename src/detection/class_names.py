"""Names of a checkpoint's classes, and the checkpoint's label for each category of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.coco_categories import (
    COCO_CATEGORY_IDS,
    COCO_NAMES,
    COCO_TO_OBJECTS365,
    OBJECTS365_SLOTS,
)
from ..core.errors import CheckpointError

MAX_LISTED_CLASSES = 20
"""Maximum number of classes in a message."""


def named_classes(
    classes: Sequence[dict[str, Any]] | None, count: int
) -> list[dict[str, Any]]:
    """Return id and name for each label of a class head.

    Args:
        classes: `{"id": category id, "name": name}` of the first labels, from a checkpoint; None if it has
            none.
        count: number of labels.

    Returns:
        `count` entries. Without `classes` they are COCO's if `count` is 80, Objects365's if it is 366, else
        numbers. Labels that `classes` leaves out are called "(unused N)" and have the id -1.
    """
    entries: list[dict[str, Any]] = []
    if classes is not None:
        entries += classes
        for label in range(len(classes), count):
            entries.append({"id": -1, "name": f"(unused {label})"})
    elif count == len(COCO_NAMES):
        for category, name in zip(COCO_CATEGORY_IDS, COCO_NAMES):
            entries.append({"id": category, "name": name})
    elif count == OBJECTS365_SLOTS:
        entries += _objects365_classes()
    else:
        for label in range(count):
            entries.append({"id": label, "name": f"class {label}"})
    return entries


def _objects365_classes() -> list[dict[str, Any]]:
    """Return Objects365's classes; those that COCO has as well have COCO's name, the others a number.

    The label is the category id, and label 0 has no class.
    """
    names = {
        index + 1: COCO_NAMES[label]
        for label, index in enumerate(COCO_TO_OBJECTS365)
    }
    entries: list[dict[str, Any]] = [{"id": -1, "name": "(unused 0)"}]
    for category in range(1, OBJECTS365_SLOTS):
        name = names.get(category, f"class {category}")
        entries.append({"id": category, "name": name})
    return entries


def known_names(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of a checkpoint's classes.

    Objects365 classes, which are recognized by their ids, get the COCO name if COCO has the class.
    """
    names = [entry["name"] for entry in classes]
    row = {entry["id"]: index for index, entry in enumerate(classes)}
    if sorted(row) == list(range(1, OBJECTS365_SLOTS)):
        for label, index in enumerate(COCO_TO_OBJECTS365):
            names[row[index + 1]] = COCO_NAMES[label]
    return names


def match_names(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """Return the position of each name in `known`, or None; an exact match wins over one in another case.

    Example:
        >>> match_names(["cat", "Dog", "cow"], ["dog", "Cat", "cat"])
        [2, 0, None]
    """
    exact: dict[str, int] = {}
    any_case: dict[str, int] = {}
    for index, name in enumerate(known):
        exact.setdefault(name, index)
        any_case.setdefault(name.casefold(), index)
    row = any_case | exact
    return [row.get(name, row.get(name.casefold())) for name in names]


def find_labels(
    categories: Sequence[tuple[int, str]],
    classes: Sequence[Mapping[str, Any]],
    *,
    ann_file: str | Path,
    weights: Path,
) -> list[int]:
    """Return the label that a checkpoint uses for each category.

    Labels are found by name, or by id and name where names are repeated.

    Args:
        categories: (id, name) of each category of a data set.
        classes: `{"id": category id, "name": name}` of each label of the checkpoint.
        ann_file: annotation file of the data set, used in messages.
        weights: file of the checkpoint, used in messages.

    Returns:
        A label for each category, in the order of `categories`.

    Raises:
        CheckpointError: with the categories that the checkpoint does not have.
    """
    by_name: dict[str, int] = {}
    by_both: dict[tuple[int, str], int] = {}
    for label, entry in enumerate(classes):
        by_name.setdefault(entry["name"], label)
        by_both[entry["id"], entry["name"]] = label
    unknown = []
    for category, name in categories:
        if name not in by_name:
            unknown.append(f"{name} (id {category})")
    if unknown:
        known = [entry["name"] for entry in classes[:MAX_LISTED_CLASSES]]
        raise CheckpointError(
            f"{ann_file} has classes that {weights} was not trained with: "
            f"{', '.join(unknown[:MAX_LISTED_CLASSES])}; its classes are {', '.join(known)}; use -t to start "
            "a new run from its weights"
        )
    labels = []
    for category, name in categories:
        labels.append(by_both.get((category, name), by_name[name]))
    return labels
