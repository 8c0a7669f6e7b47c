"""Recognition of other layouts of data sets, for messages with advice."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

LOOKED_AT = 200
"""Maximum number of files and folders to examine."""


def describe_layout(folder: Path) -> str:
    """Return a sentence about the layout that a folder seems to have, with advice."""
    names = [path.relative_to(folder).as_posix() for path in _first_entries(folder)]
    lower = [name.lower() for name in names]
    coco = [name for name in names if name.endswith("_annotations.coco.json")]
    if coco:
        return (
            f"; it contains COCO files ({coco[0]}), which need no conversion: "
            "pass them to train.py or check.py directly"
        )
    if any(name.endswith(("obj.data", "obj.names")) for name in lower):
        return (
            "; it looks like Darknet's layout (obj.data, obj.names): write a data.yaml with "
            "train, val and the names "
            "of obj.names, one list entry per line"
        )
    if any(name.endswith("classes.txt") for name in lower):
        return "; classes.txt has the class names: write a data.yaml with train, val and these names in order"
    if any(name.endswith(".xml") for name in lower):
        return (
            "; it contains XML files: for Pascal VOC's layout put them into Annotations/ and the "
            "images into JPEGImages/ "
            "(docs/data.md)"
        )
    if any(name.endswith(".json") for name in lower):
        return "; it contains JSON files: COCO files need no conversion, and other tools can export to COCO"
    return "; docs/data.md describes the layouts that can be converted"


def _first_entries(folder: Path) -> Iterator[Path]:
    """Yield some of the entries of a folder and of its subfolders."""
    try:
        top = sorted(folder.iterdir())[:LOOKED_AT]
    except OSError:
        return
    below = (
        sorted(path.iterdir())[:LOOKED_AT]
        for path in top
        if path.is_dir() and not path.is_symlink()
    )
    yield from chain(top, chain.from_iterable(below))
