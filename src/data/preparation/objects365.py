"""Preparation of Objects365: move most validation images to training, and write smaller copies of large
images.

The folder has `train/zhiyuan_objv2_train.json` and `val/zhiyuan_objv2_val.json` with their images. Existing
files are never changed.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image
from tqdm import tqdm

from ...core.coco_categories import differing_categories
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
from ..dataset.coco_records import (
    parse_record,
    read_annotation_file,
    split_records,
    unsafe_file_name,
)
from ..dataset.decoding import ImageError, load_image
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


def remap(base: Path, new_val_size: int, output_suffix: str) -> Iterator[str]:
    """Keep the first validation images, and move the others to training as `images_from_val/`; yield lines
    about it.

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
    train_path, val_path = _annotations(base, "train"), _annotations(base, "val")
    outputs = {
        path: path.with_name(f"{output_suffix}_{path.name}")
        for path in (train_path, val_path)
    }
    refuse_foreign(
        outputs.values(), "choose another --output_suffix", recognize=is_our_coco_file
    )
    train, val = (
        split_records(read_annotation_file(path), path)
        for path in (train_path, val_path)
    )
    _check_categories(train, val, train_path, val_path)
    count = len(val["images"])
    if not 0 < new_val_size <= count:
        raise ConfigError(
            f"--new_val_size is {new_val_size}, expected 1 to {count}, the number of images in {val_path}"
        )
    val_boxes, moved_boxes = _boxes_of_first_images(val, new_val_size, val_path)
    moved_images = val["images"][new_val_size:]
    added = _renumbered_for_training(
        train, moved_images, moved_boxes, train_path, val_path
    )
    joined = {key: train[key] + records for key, records in added.items()}
    shortened = {"images": val["images"][:new_val_size], "annotations": val_boxes}
    for path, content in (
        (train_path, {**train, **joined}),
        (val_path, {**val, **shortened}),
    ):
        output = outputs[path]
        _write_labels(output, content)
        yield f"{output}: {len(content['images'])} images, {len(content['annotations'])} boxes"
    if moved_images and not (base / "train" / FROM_VAL).is_dir():
        source = base / "val" / "images"
        target = base / "train" / FROM_VAL
        yield f"now link the images into the training folder, without a second copy: cp -al {source} {target}"


def _boxes_of_first_images(
    content: dict[str, Any], count: int, path: Path
) -> tuple[list[Any], list[Any]]:
    """Return the annotations of the first images of a file, and those of the others."""
    first = {record.id for record in _decoded(content["images"][:count], _Id, path)}
    boxes = _decoded(content["annotations"], _Box, path)
    is_of_first = np.array([box.image_id in first for box in boxes], bool)
    annotations = content["annotations"]
    return (
        [annotations[i] for i in np.flatnonzero(is_of_first)],
        [annotations[i] for i in np.flatnonzero(~is_of_first)],
    )


def _check_categories(
    train: dict[str, Any], val: dict[str, Any], train_path: Path, val_path: Path
) -> None:
    """Raise `DataError` if the categories of two files differ."""
    ours, theirs = (
        {
            record["id"]: record["name"]
            for record in map(parse_record, content["categories"])
        }
        for content in (train, val)
    )
    if differing := differing_categories(ours, theirs):
        raise DataError(
            f"categories differ between {train_path} and {val_path}: {listed(differing, '; ')}"
        )


def _renumbered_for_training(
    train: dict[str, Any],
    images: Sequence[Any],
    boxes: list[Any],
    train_path: Path,
    val_path: Path,
) -> dict[str, list[Any]]:
    """Return validation images and their boxes as records of the training file, with ids that are free
    there.
    """
    new_image_id = _free_ids(train["images"], images, train_path, val_path)
    new_box_id = _free_ids(train["annotations"], boxes, train_path, val_path)
    if new_image_id or new_box_id:
        boxes = [_renumbered(record, new_image_id, new_box_id) for record in boxes]
    return {
        "images": [_moved_image(record, new_image_id) for record in images],
        "annotations": boxes,
    }


def resize(base: Path, max_size: int, num_workers: int) -> Iterator[str]:
    """Write `*_resized.jpg` for larger images, and `*_resized.json` with scaled boxes, for training and
    validation.

    Existing results are not written again, so an interrupted run can be repeated. Yields lines about the
    results.

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
        remapped = base / part / f"new_zhiyuan_objv2_{part}.json"
        yield _resize_part(
            remapped if remapped.exists() else _annotations(base, part),
            base / part,
            max_size,
            num_workers,
        )


def _resize_part(path: Path, folder: Path, max_size: int, num_workers: int) -> str:
    output = path.with_name(f"{path.stem}_resized.json")
    refuse_foreign([output], "move it away", recognize=is_our_coco_file)
    content = split_records(read_annotation_file(path), path)
    images = _decoded(content["images"], _Image, path)
    larger = {
        index: _target(image, max_size)
        for index, image in enumerate(images)
        if max(image.width, image.height) > max_size
    }
    _check_names(
        [
            *(image.file_name for image in images),
            *(target.file_name for target in larger.values()),
        ],
        path,
    )
    names = [images[index].file_name for index in larger]
    if faults := _resize_images(
        folder, names, list(larger.values()), num_workers, path.name
    ):
        raise DataError(
            f"{len(faults)} of {len(images)} images of {path} cannot be resized: {listed(faults, '; ')}; "
            "tools/dataset/check.py --fix writes an annotation file without them; finished images are kept"
        )
    _scale_records(content, images, larger, path)
    _write_labels(output, content)
    return (
        f"{output}: {len(larger)} of {len(images)} images are larger than {max_size} pixels "
        "and have a smaller copy now"
    )


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
    jobs = [
        (folder / name, folder / target.file_name, target.old, target.size)
        for i, (name, target) in enumerate(zip(names, targets))
        if i not in absent
    ]
    with ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("fork")
    ) as pool:
        results = pool.map(_resize_image, jobs, chunksize=16)
        faults += filter(
            None, tqdm(results, description, len(jobs), leave=False, disable=None)
        )
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
        record = content["images"][index] = parse_record(content["images"][index])
        record.update(
            file_name=target.file_name, width=target.size[0], height=target.size[1]
        )
        factors[images[index].id] = (
            target.size[0] / target.old[0],
            target.size[1] / target.old[1],
        )
    annotations = content["annotations"]
    for index, box in enumerate(_decoded(annotations, _Box, path)):
        if box.image_id in factors:
            annotations[index] = _scaled(
                parse_record(annotations[index]), *factors[box.image_id]
            )


def _write_labels(path: Path, content: dict[str, Any]) -> None:
    """Write an annotation file with this project's mark."""
    if content.get("info") is not None:
        content = {**content, "info": parse_record(content["info"])}
    write_atomically(path, lambda file: write_records(file, marked_coco(content)))


def _annotations(base: Path, part: str) -> Path:
    path = base / part / f"zhiyuan_objv2_{part}.json"
    if not path.is_file():
        raise DataError(
            f"{path} is missing; --base_dir is the folder of Objects365 with train/ and val/"
        )
    return path


def _decoded(
    records: Sequence[Any], kind: type[msgspec.Struct], path: Path
) -> list[Any]:
    """Return the fields that are needed of each record."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind)
    try:
        return [
            decoder.decode(record)
            if isinstance(record, msgspec.Raw)
            else msgspec.convert(record, kind)
            for record in records
        ]
    except msgspec.MsgspecError as error:
        raise DataError(
            f"{path}: {error}; tools/dataset/check.py lists all faults of the file"
        ) from None


def _free_ids(
    train: Sequence[Any], moved: Sequence[Any], train_path: Path, val_path: Path
) -> dict[int, int]:
    """Return new ids for the moved records if any of their ids is in use; otherwise nothing."""
    taken = np.array(
        [record.id for record in _decoded(train, _Id, train_path)], np.int64
    )
    ids = np.array([record.id for record in _decoded(moved, _Id, val_path)], np.int64)
    if not np.isin(ids, taken).any():
        return {}
    first = int(max(taken.max(), ids.max())) + 1
    return {int(i): first + number for number, i in enumerate(ids)}


def _moved_image(record: Any, new_id: dict[int, int]) -> dict[str, Any]:
    record = parse_record(record)
    if reason := unsafe_file_name(record.get("file_name")):
        raise DataError(
            f"image {record.get('id')} has the file_name {str(record.get('file_name'))[:80]!r}, {reason}"
        )
    name = record["file_name"].partition("/")[2] or record["file_name"]
    return {
        **record,
        "id": new_id.get(record["id"], record["id"]),
        "file_name": f"{FROM_VAL}/{name}",
    }


def _renumbered(
    record: Any, new_image_id: dict[int, int], new_box_id: dict[int, int]
) -> dict[str, Any]:
    record = parse_record(record)
    return {
        **record,
        "id": new_box_id.get(record["id"], record["id"]),
        "image_id": new_image_id.get(record["image_id"], record["image_id"]),
    }


def _target(image: _Image, max_size: int) -> _Resized:
    scale = max_size / max(image.width, image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return _Resized(
        f"{os.path.splitext(image.file_name)[0]}_resized.jpg",
        size,
        (image.width, image.height),
    )


def _check_names(names: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for name in names:
        if reason := unsafe_file_name(name):
            raise DataError(f"{path}: file_name is {name[:80]!r}, {reason}")
        if name in seen:
            raise DataError(f"{path}: two images would be {name}")
        seen.add(name)


def _resize_image(
    job: tuple[Path, Path, tuple[int, int], tuple[int, int]],
) -> str | None:
    """Write a smaller copy unless it exists; return a description of a fault. Foreign files are never
    replaced.
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
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    write_picture(
        target,
        picture.resize(new, Image.Resampling.LANCZOS),
        quality=QUALITY,
        mark=DATA_IMAGE,
    )
    return None


def _scaled(record: dict[str, Any], x: float, y: float) -> dict[str, Any]:
    """Scale the values in pixels, and remove masks and keypoints, which detection does not use."""
    box = record["bbox"]
    scaled = {**record, "bbox": [box[0] * x, box[1] * y, box[2] * x, box[3] * y]}
    if isinstance(record.get("area"), int | float):
        scaled["area"] = record["area"] * x * y
    return {
        key: value
        for key, value in scaled.items()
        if key not in ("segmentation", "keypoints")
    }
