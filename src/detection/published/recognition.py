"""Decide which model of the table a checkpoint holds.

D-FINE, DEIM and RT-DETRv4 have the same tensors for several sizes and differ only in the activation of the
decoder. The order of what decides is: tensors, notes in the file, `--family`, the name of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.coco_categories import OBJECTS365_SLOTS
from ...core.errors import CheckpointError
from ..model_table import TITLES, Entry, read_table
from .layouts import PROJECTOR, TRANSFORMERS, Converted
from .signatures import architecture_of

FAMILIES = tuple(TITLES)
"""Values of `--family`."""

_FAMILY_IN_NAME = (
    ("rtv4", re.compile(r"rtv4|rt-?detr-?v4")),
    ("deim", re.compile(r"(?<![a-z])deim(?!v2|[a-z])")),
    ("dfine", re.compile(r"d-?fine")),
)
"""Family that a word in the name of a file stands for; the first that is found counts.

The names of DEIM's files also contain the word "dfine".
"""


@dataclass(frozen=True)
class Recognized:
    """A model of the table, and how it was found."""

    entry: Entry
    decided_by: str
    """What decided: "its tensors", "its notes", "--family", "its name", or "nothing"."""
    others: tuple[Entry, ...] = ()
    """Models of other families that have the same tensors."""

    @property
    def different(self) -> list[Entry]:
        """Those of `others` that compute other boxes, because the decoder has another activation."""
        mine = self.entry.activation
        return [other for other in self.others if other.activation != mine]

    @property
    def is_undecided(self) -> bool:
        """True if nothing decided between families that compute different boxes."""
        return bool(self.different) and self.decided_by == "nothing"

    @property
    def warning(self) -> str | None:
        """The sentence that reports a choice between families that compute different boxes, or None."""
        if not self.different:
            return None
        mine = self.entry
        theirs = shown_activation(self.different[0].activation)
        ours = shown_activation(mine.activation)
        reason = _REASONS[self.decided_by]
        titles = " or ".join(other.title for other in self.different)
        families = ", ".join(other.family for other in self.different)
        return (
            f"used as {mine.title} with {ours} in the decoder, {reason}; its tensors would also fit {titles} "
            f"with {theirs}: --family chooses ({mine.family}, {families})"
        )


_REASONS = {
    "its notes": "as its notes say",
    "--family": "as --family says",
    "its name": "as the name of the file says",
    "nothing": "because neither the file nor its name says what it is",
}


def shown_activation(name: str) -> str:
    """Return the usual spelling of an activation: "ReLU" for "relu"."""
    return {"relu": "ReLU", "silu": "SiLU"}.get(name, name)


def recognize(
    path: Path,
    converted: Converted,
    *,
    num_classes: int | None,
    noted: str | None = None,
    family: str | None = None,
    model: str | None = None,
) -> Recognized | None:
    """Return the model of the table that a file holds, or None if its tensors are not known.

    Args:
        path: the file, whose name may decide.
        converted: its tensors.
        num_classes: number of classes; 366 stands for Objects365.
        noted: family in the notes of the file, if there is one.
        family: family that the user gives.
        model: name of the model by which the user asked for the file.

    Raises:
        CheckpointError: if the family or the model contradicts the file.
    """
    architecture = architecture_of(converted.weights)
    if architecture is None:
        return None
    same_tensors = [
        entry
        for entry in read_table().values()
        if entry.architecture == architecture
    ]
    candidates = _fitting(same_tensors, converted)
    if model is not None:
        return _asked_for(path, model, candidates)
    named = _family_in(path.name)
    families = _families(candidates)
    if family is not None:
        _refuse_contradictions(path, family, candidates, noted, named)
    decided_by, choice = _decision(families, noted, family, named)
    entry = _of_classes(
        [entry for entry in candidates if entry.family == choice],
        num_classes,
        path.name,
    )
    others = []
    for other in sorted(families - {choice}):
        of_family = [entry for entry in candidates if entry.family == other]
        others.append(_of_classes(of_family, num_classes, path.name))
    found = Recognized(entry, decided_by, tuple(others))
    if decided_by == "nothing" and not found.different:
        # families that compute the same boxes: what matters is decided
        return replace(found, decided_by="its tensors")
    return found


def _decision(
    families: set[str],
    noted: str | None,
    family: str | None,
    named: str | None,
) -> tuple[str, str]:
    """Return what decides between families with the same tensors, and its choice."""
    if len(families) == 1:
        return "its tensors", next(iter(families))
    if noted in families:
        return "its notes", noted
    if family in families:
        return "--family", family
    if named in families:
        return "its name", named
    usual = next(family for family in FAMILIES if family in families)
    return "nothing", usual


def _fitting(entries: list[Entry], converted: Converted) -> list[Entry]:
    """Return the entries that also agree in tensors that are not part of the signature."""
    if any(key.startswith(PROJECTOR) for key in converted.dropped):
        return [entry for entry in entries if entry.family == "rtv4"]
    if converted.layout == TRANSFORMERS:
        # transformers has no batch counts, and D-FINE is the family that it publishes
        return entries
    counts = any(
        key.startswith("backbone.") and key.endswith(".num_batches_tracked")
        for key in converted.weights
    )
    return [
        entry for entry in entries if entry.counts_batches in (None, counts)
    ]


def _asked_for(path: Path, model: str, candidates: list[Entry]) -> Recognized:
    """Return the model that the user named, if the file can hold it."""
    for entry in candidates:
        if entry.name == model:
            return Recognized(entry, "its tensors")
    titles = _titles(candidates)
    raise CheckpointError(
        f"{path} holds {titles}, not {model}; put the file of {model} there"
    )


def _refuse_contradictions(
    path: Path,
    family: str,
    candidates: list[Entry],
    noted: str | None,
    named: str | None,
) -> None:
    """Check that nothing about a file contradicts the family that a user gives."""
    title = TITLES[family]
    families = _families(candidates)
    if family not in families:
        raise CheckpointError(
            f"{path} has the tensors of {_titles(candidates)}, which contradicts --family {family} "
            f"({title}); leave --family out"
        )
    if noted in families and noted != family:
        raise CheckpointError(
            f"{path} says in its notes that it is {TITLES[noted]}, which contradicts --family {family} "
            f"({title}); leave --family out"
        )
    if named in families and named != family:
        raise CheckpointError(
            f"{path} is {TITLES[named]} according to its name, which contradicts --family {family} "
            f"({title}); leave --family out, or rename the file if its name is wrong"
        )


def _family_in(name: str) -> str | None:
    """Return the family that the name of a file contains, or None."""
    text = name.lower().replace("_", "-")
    for family, pattern in _FAMILY_IN_NAME:
        if pattern.search(text):
            return family
    return None


def _families(entries: Iterable[Entry]) -> set[str]:
    return {entry.family for entry in entries}


def _titles(entries: list[Entry]) -> str:
    return " or ".join(dict.fromkeys(entry.title for entry in entries))


def _of_classes(
    entries: list[Entry], num_classes: int | None, name: str
) -> Entry:
    """Return the entry for a number of classes, of these the one whose data the name of the file contains."""
    wants_objects365 = num_classes == OBJECTS365_SLOTS
    fitting = [
        entry
        for entry in entries
        if entry.is_for_objects365 == wants_objects365
    ]
    for entry in fitting or entries:
        data = entry.name.rsplit("_", 1)[-1]  # "coco", "obj2coco", "obj365"
        if re.search(rf"(?<![a-z0-9]){data}(?![a-z0-9])", name.lower()):
            return entry
    return (fitting or entries)[0]
