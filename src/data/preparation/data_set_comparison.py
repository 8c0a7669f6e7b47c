"""Findings about several data sets together: different categories, and images that are used twice."""

from __future__ import annotations

import os

from ...core.coco_categories import differing_categories
from ...core.counts import counted
from ..dataset.duplicate_images import find_duplicates
from ..dataset.findings import Kind
from .check_report import (
    Checked,
    Entry,
    FileGroups,
    Group,
    image_entries,
    image_entry,
)


def compare_data_sets(
    train: Checked,
    val: Checked,
    groups: list[Group],
) -> None:
    """Add the findings about training and validation data together."""
    found = FileGroups(str(val.data.annotations), groups)
    _compare_categories(train, val, found)
    trained = _positions_of_files(train)
    scored = _positions_of_files(val)
    shared = sorted(trained.keys() & scored.keys())
    both = [scored[path] for path in shared]
    found.add(
        "images that are used for training too", False, image_entries(val, both)
    )


def _compare_categories(
    train: Checked,
    val: Checked,
    found: FileGroups,
) -> None:
    """Add categories that differ, or that have the same names under other ids."""
    ours = train.examined.categories
    theirs = val.examined.categories
    files = f"({train.data.annotations} / {val.data.annotations})"
    differing = []
    for line in differing_categories(ours, theirs):
        differing.append(Entry("categories", None, f"{line} {files}"))
    found.add(Kind.CATEGORIES, True, differing)
    if not differing and ours != theirs:
        text = (
            f"{counted(len(theirs), 'category', 'categories')}, matched by name"
        )
        found.add(
            "categories under other ids than in training",
            False,
            [Entry("categories", None, text)],
        )


def _positions_of_files(checked: Checked) -> dict[str, int]:
    """Return the position of each image by its path, in which only the folder is resolved."""
    folder = os.path.realpath(checked.data.images)
    positions = {}
    for index, record in enumerate(checked.examined.content.images):
        positions[f"{folder}/{record.file_name}"] = index
    return positions


def add_duplicates(checked: list[Checked], groups: list[Group]) -> None:
    """Add the images with the content of another one, within a data set and between them."""
    if not checked:
        return
    duplicates = find_duplicates([one.images.scan for one in checked])
    for number, one in enumerate(checked):
        found = FileGroups(str(one.data.annotations), groups)
        inside = _duplicate_entries(one, duplicates.within(number))
        found.add("images with the content of another one", False, inside)
        if number > 0:
            shared = _duplicate_entries(one, duplicates.shared())
            found.add(
                "images that are used for training too, under other names",
                False,
                shared,
            )


def _duplicate_entries(
    checked: Checked, groups: list[list[str]]
) -> list[Entry]:
    """Return an entry for each image of a data set that has the content of the first in its group."""
    paths = checked.images.scan.paths
    positions = {path: index for index, path in enumerate(paths)}
    entries = []
    for first, *others in groups:
        for path in others:
            if path in positions:
                what = f"has the content of {first}"
                entries.append(image_entry(checked, positions[path], what))
    return entries
