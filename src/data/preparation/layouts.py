"""Recognition of other layouts of data sets, for messages with advice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

LOOKED_AT = 200
"""Maximum number of files and folders to examine."""


def describe_layout(folder: Path) -> str:
    """Return a sentence about the layout that a folder seems to have, with advice."""
    names = []
    for path in _first_entries(folder):
        names.append(path.relative_to(folder).as_posix())
    lower = [name.lower() for name in names]
    coco = list(filter(_is_exported_coco, names))
    if coco:
        return (
            f"; it contains COCO files ({coco[0]}), which need no conversion: "
            "pass them to train.py or check.py directly"
        )
    for endings, advice in _ADVICE:
        if any(name.endswith(endings) for name in lower):
            return f"; {advice}"
    return "; docs/data.md describes the layouts that can be converted"


def _is_exported_coco(name: str) -> bool:
    return name.endswith("_annotations.coco.json")


_ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("obj.data", "obj.names"),
        "it looks like Darknet's layout (obj.data, obj.names): write a data.yaml with train, val and the "
        "names of obj.names, one list entry per line",
    ),
    (
        ("classes.txt",),
        "classes.txt has the class names: write a data.yaml with train, val and these names in order",
    ),
    (
        (".xml",),
        "it contains XML files: for Pascal VOC's layout put them into Annotations/ and the images into "
        "JPEGImages/ (docs/data.md)",
    ),
    (
        (".json",),
        "it contains JSON files: COCO files need no conversion, and other tools can export to COCO",
    ),
)
"""Endings of file names in lower case, and the advice if there is such a file; the first match counts."""


def _first_entries(folder: Path) -> Iterator[Path]:
    """Yield some of the entries of a folder and of its subfolders."""
    try:
        top = sorted(folder.iterdir())[:LOOKED_AT]
    except OSError:
        return
    yield from top
    for path in top:
        if path.is_dir() and not path.is_symlink():
            yield from sorted(path.iterdir())[:LOOKED_AT]
