"""Split of a COCO file into files for training and validation; records are copied byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ...core.errors import DataError
from ...runtime.files import write_atomically
from ...runtime.own_files import marked_coco
from ..dataset.annotation_text import (
    parse_record,
    read_annotation_file,
    split_records,
)
from ..dataset.coco_format import CocoLabels, load_coco
from ..dataset.image_names import unsafe_file_name
from ..dataset.misplaced_files import find_misplaced
from .coco_json import write_records
from .find_coco import CocoFile
from .splitting import (
    choose_validation,
    describe_groups,
    describe_split,
    same_pictures,
)


class _OfImage(msgspec.Struct):
    image_id: int


class _Image(msgspec.Struct):
    id: int
    file_name: str


def image_paths(coco: CocoFile) -> Iterator[Path]:
    """Yield the image files that a COCO file lists under a safe name."""
    content = split_records(read_annotation_file(coco.path), coco.path)
    for record in content["images"]:
        values = parse_record(record)
        name = values.get("file_name") if isinstance(values, dict) else None
        if unsafe_file_name(name) is None:
            yield coco.images / str(name)


def split_coco(
    coco: CocoFile,
    output: Path,
    fraction: float,
    seed: int,
    *,
    follow_links: bool = False,
) -> Iterator[str]:
    """Write `train.json` and `val.json`, and yield lines about the split.

    Args:
        coco: the file to split.
        output: folder for both files.
        fraction: fraction for validation, as for `splitting.split`.
        seed: random seed.
        follow_links: open images that are symbolic links out of their folder, to compare them.

    Raises:
        DataError: if the file has faults, or only one image.
    """
    labels = load_coco(coco.path)
    classes = _classes_by_name(labels)
    names = list(classes)
    missing, leaving = find_misplaced(coco.images, names)
    skipped = set(missing)
    if not follow_links:
        skipped.update(leaving)
    compared = [n for i, n in enumerate(names) if i not in skipped]
    groups = same_pictures(coco.images, compared)
    yield from describe_groups(groups)
    try:
        chosen = choose_validation(classes, fraction, seed, groups)
    except DataError as error:
        raise DataError(
            f"{coco.path}: {error}; add images, or a file for validation"
        ) from None
    content = split_records(read_annotation_file(coco.path), coco.path)
    in_val: set[int] = set()
    for record in content["images"]:
        image = _decoded(record, _Image)
        if image.file_name in chosen:
            in_val.add(image.id)
    for part, is_val in (("train", False), ("val", True)):
        _write_part(content, in_val, is_val, output / f"{part}.json")
    train_classes: set[int] = set()
    val_classes: set[int] = set()
    for name, own in classes.items():
        (val_classes if name in chosen else train_classes).update(own)
    num_val = len(in_val)
    num_train = len(content["images"]) - num_val
    yield describe_split(
        train_classes, val_classes, num_train, num_val, fraction, seed
    )


def _classes_by_name(labels: CocoLabels) -> dict[str, set[int]]:
    """Return the classes of the objects in each image, by file name."""
    classes: dict[str, set[int]] = {}
    for index in range(len(labels)):
        rows = labels.rows(index)
        usable = labels.categories[rows][~labels.crowds[rows]]
        own = classes.setdefault(labels.file_name(index), set())
        own.update(usable.tolist())
    return classes


def _write_part(
    content: dict[str, Any], in_val: set[int], is_val: bool, path: Path
) -> None:
    images = []
    for record in content["images"]:
        if (_decoded(record, _Image).id in in_val) == is_val:
            images.append(record)
    annotations = []
    for record in content["annotations"]:
        if (_decoded(record, _OfImage).image_id in in_val) == is_val:
            annotations.append(record)
    info = parse_record(content.get("info"))
    part = marked_coco(
        {
            **content,
            "info": info,
            "images": images,
            "annotations": annotations,
        }
    )
    write_atomically(path, lambda file: write_records(file, part))


def _decoded(record: Any, kind: type[Any]) -> Any:
    """Return a record as a struct; it has been checked before."""
    if isinstance(record, msgspec.Raw):
        return msgspec.json.decode(record, type=kind)
    return msgspec.convert(record, type=kind)
