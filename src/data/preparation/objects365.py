"""Preparation of Objects365: move validation images to training, and write smaller copies of large images.

The folder has `train/zhiyuan_objv2_train.json` and `val/zhiyuan_objv2_val.json` with their images. Existing
files are never changed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image
from tqdm import tqdm

from ...core.coco_categories import differing_categories
from ...core.commands import command_name
from ...core.counts import counted
from ...core.errors import ConfigError, DataError
from ...core.fault_lists import listed
from ...runtime.files import write_atomically
from ...runtime.own_files import (
    DATA_IMAGE,
    is_our_coco_file,
    is_our_data_image,
    marked_coco,
    refuse_foreign,
    write_picture,
)
from ..dataset.annotation_text import (
    parse_record,
    read_annotation_file,
    split_records,
)
from ..dataset.decoding import ImageError, load_image
from ..dataset.image_names import unsafe_file_name
from ..dataset.misplaced_files import find_misplaced
from .coco_json import write_records

FROM_VAL = "images_from_val"
"""Folder in `train` for the validation images that were moved."""

QUALITY = 95
"""JPEG quality of the smaller copies."""


class _Id(msgspec.Struct, gc=False):
    id: int


class _Box(msgspec.Struct, gc=False):
    id: int
    image_id: int


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int
    height: int


class _Resized(NamedTuple):
    file_name: str
    size: tuple[int, int]
    old: tuple[int, int]


def remap(
    base: Path,
    new_val_size: int,
    output_suffix: str,
) -> Iterator[str]:
    """Keep the first validation images, and move the others to training as `images_from_val/`.

    Yields lines about the results.

    Args:
        base: folder with `train` and `val`.
        new_val_size: number of images that remain for validation.
        output_suffix: beginning of the names of the output files: `new` gives `new_zhiyuan_objv2_train.json`.

    Raises:
        DataError: if a file cannot be read, or if categories differ.
        ConfigError: if there are not enough validation images, or if the suffix cannot be part of a file
            name.
    """
    if not output_suffix or os.path.basename(output_suffix) != output_suffix:
        raise ConfigError(
            f"--output_suffix is {output_suffix!r}, expected the beginning of a file name"
        )
    train_path = _annotations(base, "train")
    val_path = _annotations(base, "val")
    train_output = train_path.with_name(f"{output_suffix}_{train_path.name}")
    val_output = val_path.with_name(f"{output_suffix}_{val_path.name}")
    refuse_foreign(
        [train_output, val_output],
        "choose another --output_suffix",
        recognize=is_our_coco_file,
    )
    train = split_records(read_annotation_file(train_path), train_path)
    val = split_records(read_annotation_file(val_path), val_path)
    _check_categories(train, val, train_path, val_path)
    available = len(val["images"])
    if not 0 < new_val_size <= available:
        raise ConfigError(
            f"--new_val_size is {new_val_size}, expected 1 to {available}, the number of images in {val_path}"
        )
    val_boxes, moved_boxes = _boxes_of_first_images(val, new_val_size, val_path)
    moved_images = val["images"][new_val_size:]
    added = _renumbered_for_training(
        train, moved_images, moved_boxes, train_path, val_path
    )
    for key, records in added.items():
        train[key] += records
    val["images"] = val["images"][:new_val_size]
    val["annotations"] = val_boxes
    for output, content in ((train_output, train), (val_output, val)):
        _write_labels(output, content)
        images = counted(len(content["images"]), "image")
        boxes = counted(len(content["annotations"]), "box", "boxes")
        yield f"{output}: {images}, {boxes}"
    if moved_images and not (base / "train" / FROM_VAL).is_dir():
        source = base / "val" / "images"
        target = base / "train" / FROM_VAL
        yield f"now link the images into the training folder, without a second copy: cp -al {source} {target}"


def _boxes_of_first_images(
    content: dict[str, Any],
    count: int,
    path: Path,
) -> tuple[list[Any], list[Any]]:
    """Return the annotations of the first images of a file, and those of the others."""
    images = content["images"][:count]
    first = {record.id for record in _decoded(images, _Id, path)}
    boxes = _decoded(content["annotations"], _Box, path)
    of_first: list[Any] = []
    of_others: list[Any] = []
    for record, box in zip(content["annotations"], boxes):
        part = of_first if box.image_id in first else of_others
        part.append(record)
    return of_first, of_others


def _check_categories(
    train: dict[str, Any],
    val: dict[str, Any],
    train_path: Path,
    val_path: Path,
) -> None:
    """Raise `DataError` if the categories of two files differ."""
    differing = differing_categories(_names_by_id(train), _names_by_id(val))
    if differing:
        raise DataError(
            f"categories differ between {train_path} and {val_path}: {listed(differing, '; ')}"
        )


def _names_by_id(content: dict[str, Any]) -> dict[int, str]:
    """Return the names of the categories of a file."""
    names = {}
    for record in map(parse_record, content["categories"]):
        names[record["id"]] = record["name"]
    return names


def _renumbered_for_training(
    train: dict[str, Any],
    images: Sequence[Any],
    boxes: list[Any],
    train_path: Path,
    val_path: Path,
) -> dict[str, list[Any]]:
    """Return validation images and their boxes as records of the training file, with ids free there."""
    new_image_id = _free_ids(train["images"], images, train_path, val_path)
    new_box_id = _free_ids(train["annotations"], boxes, train_path, val_path)
    if new_image_id or new_box_id:
        boxes = [
            _renumbered(record, new_image_id, new_box_id) for record in boxes
        ]
    return {
        "images": [_moved_image(record, new_image_id) for record in images],
        "annotations": boxes,
    }


def resize(
    base: Path,
    max_size: int,
    num_workers: int,
) -> Iterator[str]:
    """Write `*_resized.jpg` for larger images, and `*_resized.json` with scaled boxes, for both parts.

    The parts are training and validation. Existing results are not written again, so an interrupted run can
    be repeated. Yields lines about the results.

    Args:
        base: folder with `train` and `val`.
        max_size: maximum side in pixels; smaller images are used unchanged.
        num_workers: number of processes.

    Raises:
        DataError: if images cannot be read; the others are resized, but no annotation file is written.
    """
    if max_size < 1 or num_workers < 1:
        raise ConfigError(
            f"--max_size is {max_size} and --num_workers {num_workers}, expected positive integers"
        )
    for part in ("train", "val"):
        path = base / part / f"new_zhiyuan_objv2_{part}.json"
        if not path.exists():
            path = _annotations(base, part)
        yield _resize_part(path, base / part, max_size, num_workers)


def _resize_part(
    path: Path,
    folder: Path,
    max_size: int,
    num_workers: int,
) -> str:
    output = path.with_name(f"{path.stem}_resized.json")
    refuse_foreign([output], "move it away", recognize=is_our_coco_file)
    content = split_records(read_annotation_file(path), path)
    images = _decoded(content["images"], _Image, path)
    larger = {}
    for index, image in enumerate(images):
        if max(image.width, image.height) > max_size:
            larger[index] = _target(image, max_size)
    targets = list(larger.values())
    _check_names(chain(_file_names(images), _file_names(targets)), path)
    names = [images[index].file_name for index in larger]
    faults = _resize_images(folder, names, targets, num_workers, path.name)
    if faults:
        raise DataError(
            f"{len(faults)} of {len(images)} images of {path} cannot be resized: {listed(faults, '; ')}; "
            f"{command_name('check')} --fix writes an annotation file without them; finished images are kept"
        )
    _scale_records(content, images, larger, path)
    _write_labels(output, content)
    return (
        f"{output}: {len(larger)} of {len(images)} images are larger than {max_size} pixels "
        "and have a smaller copy now"
    )


def _file_names(records: Iterable[_Image | _Resized]) -> Iterator[str]:
    return (record.file_name for record in records)


def _resize_images(
    folder: Path,
    names: list[str],
    targets: list[_Resized],
    num_workers: int,
    description: str,
) -> list[str]:
    """Write the smaller copies; return the faults of the images that have none."""
    missing, leaving = find_misplaced(folder, names)
    faults = [f"{folder / names[i]} is missing" for i in missing]
    faults += [f"{folder / names[i]} leads out of {folder}" for i in leaving]
    absent = {*missing, *leaving}
    jobs = []
    for index, (name, target) in enumerate(zip(names, targets)):
        if index not in absent:
            copy = folder / target.file_name
            jobs.append(_Job(folder / name, copy, target.old, target.size))
    forking = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(num_workers, mp_context=forking) as pool:
        results = pool.map(_resize_image, jobs, chunksize=16)
        shown = tqdm(
            results,
            description,
            len(jobs),
            leave=False,
            disable=None,
        )
        faults += filter(None, shown)
    return faults


def _scale_records(
    content: dict[str, Any],
    images: Sequence[_Image],
    larger: dict[int, _Resized],
    path: Path,
) -> None:
    """Change the records of images that have a smaller copy, and of their boxes, in place."""
    factors = {}
    for index, target in larger.items():
        width, height = target.size
        old_width, old_height = target.old
        record = parse_record(content["images"][index])
        record.update(file_name=target.file_name, width=width, height=height)
        content["images"][index] = record
        factors[images[index].id] = (width / old_width, height / old_height)
    annotations = content["annotations"]
    for index, box in enumerate(_decoded(annotations, _Box, path)):
        if box.image_id in factors:
            x, y = factors[box.image_id]
            record = parse_record(annotations[index])
            annotations[index] = _scaled(record, x, y)


def _write_labels(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file with this project's mark."""
    if content.get("info") is not None:
        content = {**content, "info": parse_record(content["info"])}
    write_atomically(
        path, lambda file: write_records(file, marked_coco(content))
    )


def _annotations(base: Path, part: str) -> Path:
    path = base / part / f"zhiyuan_objv2_{part}.json"
    if not path.is_file():
        raise DataError(
            f"{path} is missing; --base_dir is the folder of Objects365 with train/ and val/"
        )
    return path


def _decoded(
    records: Sequence[Any],
    kind: type[msgspec.Struct],
    path: Path,
) -> list[Any]:
    """Return the fields that are needed of each record."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    decoded = []
    try:
        for record in records:
            if isinstance(record, msgspec.Raw):
                decoded.append(decoder.decode(record))
            else:
                decoded.append(msgspec.convert(record, kind))
    except msgspec.MsgspecError as error:
        raise DataError(
            f"{path}: {error}; {command_name('check')} lists all faults of the file"
        ) from None
    return decoded


def _free_ids(
    train: Sequence[Any],
    moved: Sequence[Any],
    train_path: Path,
    val_path: Path,
) -> dict[int, int]:
    """Return new ids for the moved records if any of their ids is in use; otherwise nothing."""
    taken = _ids(train, train_path)
    ids = _ids(moved, val_path)
    if not np.isin(ids, taken).any():
        return {}
    first = int(max(taken.max(), ids.max())) + 1
    return dict(zip(ids.tolist(), count(first)))


def _ids(records: Sequence[Any], path: Path) -> np.ndarray:
    """Return the ids of records, `[N]` int64."""
    decoded = _decoded(records, _Id, path)
    return np.array([record.id for record in decoded], np.int64)


def _moved_image(record: Any, new_id: dict[int, int]) -> dict[str, Any]:
    record = parse_record(record)
    name = record.get("file_name")
    reason = unsafe_file_name(name)
    if reason:
        raise DataError(
            f"image {record.get('id')} has the file_name {str(name)[:80]!r}, {reason}"
        )
    _, _, below_first_folder = name.partition("/")
    record["id"] = new_id.get(record["id"], record["id"])
    record["file_name"] = f"{FROM_VAL}/{below_first_folder or name}"
    return record


def _renumbered(
    record: Any,
    new_image_id: dict[int, int],
    new_box_id: dict[int, int],
) -> dict[str, Any]:
    record = parse_record(record)
    record["id"] = new_box_id.get(record["id"], record["id"])
    record["image_id"] = new_image_id.get(
        record["image_id"], record["image_id"]
    )
    return record


def _target(image: _Image, max_size: int) -> _Resized:
    scale = max_size / max(image.width, image.height)
    width = max(1, round(image.width * scale))
    height = max(1, round(image.height * scale))
    stem, _ = os.path.splitext(image.file_name)
    return _Resized(
        f"{stem}_resized.jpg", (width, height), old=(image.width, image.height)
    )


def _check_names(names: Iterable[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        reason = unsafe_file_name(name)
        if reason:
            raise DataError(f"{path}: file_name is {name[:80]!r}, {reason}")
        if name in seen:
            raise DataError(f"{path}: two images would be {name}")
        seen.add(name)


class _Job(NamedTuple):
    """A smaller copy to write."""

    source: Path
    target: Path
    old: tuple[int, int]
    """(width, height) of the source."""
    new: tuple[int, int]
    """(width, height) of the copy."""


def _resize_image(job: _Job) -> str | None:
    """Write a smaller copy unless it exists, and return the description of a fault, or None.

    Files that this project did not write are never replaced.
    """
    source, target, old, new = job
    if os.path.lexists(target) and not is_our_data_image(target):
        what = f"{target} exists, but this tool did not write it as the smaller copy of {source.name}"
        return f"{what}; move it away"
    try:
        if target.exists() and target.stat().st_mtime >= source.stat().st_mtime:
            load_image(target, new)  # raises an error if the copy is incomplete
            return None
    except ImageError:
        pass
    try:
        pixels = load_image(source, old)
    except ImageError as error:
        return str(error)
    channels_last = pixels.permute(1, 2, 0).contiguous()
    picture = Image.fromarray(channels_last.numpy())
    smaller = picture.resize(new, Image.Resampling.LANCZOS)
    write_picture(
        target,
        smaller,
        quality=QUALITY,
        mark=DATA_IMAGE,
    )
    return None


def _scaled(
    record: dict[str, Any],
    x: float,
    y: float,
) -> dict[str, Any]:
    """Scale the values in pixels, and remove masks and keypoints, which detection does not use."""
    scaled = dict(record)
    left, top, width, height = record["bbox"][:4]
    scaled["bbox"] = [left * x, top * y, width * x, height * y]
    if isinstance(record.get("area"), int | float):
        scaled["area"] = record["area"] * x * y
    scaled.pop("segmentation", None)
    scaled.pop("keypoints", None)
    return scaled
