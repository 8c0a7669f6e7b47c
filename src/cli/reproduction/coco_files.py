"""The files of a data set in COCO's layout: their places, what is missing, the settings that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ...core.coco_categories import COCO_CATEGORY_IDS, COCO_NAMES
from ...core.errors import DataError
from ...core.paths import did_you_mean_file, read_text

TRAIN = "train2017"
VAL = "val2017"

COCO_2017 = {"train": 118_287, "val": 5_000}
"""Images of COCO 2017 by part."""

DOWNLOADS = "train2017.zip, val2017.zip and annotations_trainval2017.zip of https://cocodataset.org/#download"


class CocoFiles(NamedTuple):
    """Files and folders of a data set."""

    train_images: Path
    train_labels: Path
    val_images: Path
    val_labels: Path


def files_in(folder: Path) -> CocoFiles:
    """Return the files of a folder that has COCO's layout; the images may also be in a folder `images`."""
    images = folder
    if not (folder / TRAIN).is_dir() and (folder / "images" / TRAIN).is_dir():
        images = folder / "images"
    labels = folder / "annotations"
    return CocoFiles(
        images / TRAIN,
        labels / f"instances_{TRAIN}.json",
        images / VAL,
        labels / f"instances_{VAL}.json",
    )


def files_of(config: Mapping[str, Any]) -> CocoFiles:
    """Return the files that a configuration names.

    Raises:
        DataError: if it names no COCO files.
    """
    paths = []
    for part in ("train_dataloader", "val_dataloader"):
        dataset = (config.get(part) or {}).get("dataset") or {}
        for key in ("img_folder", "ann_file"):
            if not dataset.get(key):
                raise DataError(
                    f"the configuration has no {part}.dataset.{key}; pass the folder of COCO with --data DIR"
                )
            paths.append(Path(dataset[key]).expanduser())
    return CocoFiles(*paths)


def refuse_missing(files: CocoFiles) -> None:
    """Check that all files and folders exist and that the folders are not empty.

    Raises:
        DataError: with what is missing, what to download and where to put it.
    """
    missing = []
    for path in files:
        if path.suffix == ".json":
            exists = path.is_file()
        else:
            exists = path.is_dir() and any(path.iterdir())
        if not exists:
            missing.append(path)
    if not missing:
        return
    shown = ", ".join(map(str, missing))
    hint = did_you_mean_file(missing[0]) if len(missing) == 1 else ""
    verb = "is" if len(missing) == 1 else "are"
    folder = files.train_labels.parent.parent
    raise DataError(
        f"COCO 2017 is incomplete: {shown} {verb} missing or empty{hint}; unpack {DOWNLOADS} (19 GB) in "
        f"{folder}, so that it contains {TRAIN}/, {VAL}/ and annotations/, or pass the folder of your copy "
        "with --data DIR"
    )


def data_settings(files: CocoFiles) -> list[str]:
    """Return settings that use the files, as for `-u`.

    A set with other classes than COCO keeps its own: the number is counted, and ids are not remapped.

    Raises:
        DataError: if the categories of the validation data cannot be read.
    """
    settings = []
    for part, images, labels in (
        ("train", files.train_images, files.train_labels),
        ("val", files.val_images, files.val_labels),
    ):
        dataset = f"{part}_dataloader.dataset"
        settings.append(f"{dataset}.img_folder={_shown(images)}")
        settings.append(f"{dataset}.ann_file={_shown(labels)}")
    if not has_classes_of_coco(files):
        settings += ["num_classes=null", "remap_mscoco_category=False"]
    return settings


def _shown(path: Path) -> str:
    """Return a path that is not parsed as YAML, because it begins with "/" or "./"."""
    return str(path) if path.is_absolute() else f"./{path}"


def has_classes_of_coco(files: CocoFiles) -> bool:
    """Return whether the validation data has the 80 categories of COCO, with their ids.

    Raises:
        DataError: if the file is not JSON, or has no categories.
    """
    path = files.val_labels
    try:
        content = json.loads(read_text(path))
        found = dict(_categories(content["categories"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a COCO file: {type(error).__name__} {error} when its categories were read; "
            "unpack it again"
        ) from None
    return found == dict(zip(COCO_CATEGORY_IDS, COCO_NAMES))


def _categories(records: list[dict[str, Any]]) -> Iterator[tuple[int, str]]:
    for record in records:
        yield record["id"], record["name"]


def is_coco_2017(images: Mapping[str, int], *, classes: bool) -> bool:
    """Return whether a set is COCO 2017, as far as counts can tell.

    Args:
        images: number of images by part, "train" and "val".
        classes: whether it has COCO's classes.
    """
    return classes and dict(images) == COCO_2017


def remark_about(images: Mapping[str, int], *, classes: bool) -> str:
    """Return a sentence that says whether AP on a set is AP of COCO.

    Args:
        images: as for `is_coco_2017`.
        classes: as for `is_coco_2017`.
    """
    counts = (
        f"{images['train']:,} training and {images['val']:,} validation images"
    )
    if is_coco_2017(images, classes=classes):
        return f"{counts}, as in COCO 2017"
    expected = f"{COCO_2017['train']:,} and {COCO_2017['val']:,}"
    whose = "COCO's classes" if classes else "other classes than COCO"
    return f"{counts} with {whose}; COCO 2017 has {expected}, so AP on this set is not AP on COCO"


def identity_of(files: CocoFiles) -> dict[str, Any]:
    """Return what changes if other files are put in the place of these, as values for JSON."""
    identity: dict[str, Any] = {}
    for name, path in files._asdict().items():
        identity[name] = str(path.resolve())
        if path.suffix == ".json":
            entry = path.stat()
            identity[f"{name}_size"] = entry.st_size
            identity[f"{name}_changed"] = entry.st_mtime_ns
    return identity
