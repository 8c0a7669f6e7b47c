"""Conversion of data sets in other layouts to COCO files, with the command for training."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from ...core.errors import DataError
from ...runtime.files import prepare_output_dir, refuse_replacing
from ...runtime.own_files import prepare_report
from .any_dataset import recognize
from .coco_split import split_coco
from .find_coco import CocoLayout, open_coco
from .find_voc import VocLayout
from .find_yolo import YoloLayout
from .labelled_images import ConversionError, LabelledImages, write_coco_parts
from .splitting import split_if_needed

CONFIG = "configs/dfine/custom/dfine_dinov3_s_custom.yml"
"""Recommended configuration for own data."""


def convert(
    source: Path,
    output: Path,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    difficult: str = "keep",
    zero_based: bool = False,
    follow_links: bool = False,
    drop_boxes: bool = False,
    report: Path | None = None,
    data_format: str | None = None,
    images: Path | None = None,
) -> Iterator[str]:
    """Convert a data set in the layout of YOLO or Pascal VOC to `train.json` and `val.json`.

    COCO files without a part for validation are split. Yields lines about the results.

    Args:
        source: folder, `data.yaml` of YOLO, or COCO file, as for `any_dataset.find_dataset`.
        output: output folder.
        val_fraction: fraction of the training images to split off for validation if there are none, between 0
            and 1.
        seed: random seed of this split.
        difficult: Pascal VOC: one of `voc.DIFFICULT`.
        zero_based: Pascal VOC: corners are counted from 0.
        follow_links: open files that are symbolic links out of the data set.
        drop_boxes: drop boxes without area or outside their image, which are faults otherwise.
        report: file for all faults, if there are any.
        data_format: as for `find_dataset`.
        images: as for `find_dataset`.

    Raises:
        ConversionError: if there are faults; one error lists all of them, and no labels are written.
        ConfigError: if the source does not exist, or the folder is not writable.
    """
    layout = recognize(source, data_format)
    if report is not None:
        prepare_report(report, "--report")
    if isinstance(layout, CocoLayout):
        yield from _split_coco(
            layout, output, val_fraction, seed, images, follow_links
        )
        return
    try:
        data = _read(layout, difficult, zero_based, follow_links, drop_boxes)
    except ConversionError as error:
        if report is not None:
            error.write(report)
        raise
    for what, number in data.notes.items():
        if number:
            yield f"{what}: {number}"
    yield from split_if_needed(data, val_fraction, seed)
    prepare_output_dir(output)
    for part in data.parts:
        refuse_replacing(output / f"{part}.json")
    yield from write_coco_parts(data, output)
    yield f"images are in {data.folder}; train with:"
    yield training_command(
        data.folder, len(data.categories), output, follow_links=follow_links
    )


def _read(
    layout: YoloLayout | VocLayout,
    difficult: str,
    zero_based: bool,
    follow_links: bool,
    drop_boxes: bool,
) -> LabelledImages:
    """Read labels; label files without an image may be left out if boxes may be dropped."""
    if isinstance(layout, VocLayout):
        return layout.read(
            follow_links=follow_links,
            drop_boxes=drop_boxes,
            drop_strays=drop_boxes,
            difficult=difficult,
            zero_based=zero_based,
        )
    return layout.read(
        follow_links=follow_links,
        drop_boxes=drop_boxes,
        drop_strays=drop_boxes,
    )


def _split_coco(
    layout: CocoLayout,
    output: Path,
    val_fraction: float,
    seed: int,
    images: Path | None,
    follow_links: bool,
) -> Iterator[str]:
    """Split a COCO file into two, and yield lines about them.

    Raises:
        DataError: if there is a file for validation, so that nothing is left to do.
    """
    files = layout.files
    if "train" not in files or "val" in files:
        raise DataError(
            f"{layout.root} has COCO files ({layout.where()}), which need no conversion: "
            f"train with --data {layout.root}"
        )
    coco = open_coco(files["train"], layout.root, images)
    prepare_output_dir(output)
    for part in ("train", "val"):
        refuse_replacing(output / f"{part}.json")
    yield from split_coco(
        coco, output, val_fraction, seed, follow_links=follow_links
    )
    yield f"images are in {coco.images}; train with:"
    yield training_command(
        coco.images.resolve(),
        len(coco.class_names),
        output,
        follow_links=follow_links,
    )


def training_command(
    folder: Path,
    num_classes: int,
    output: Path,
    *,
    follow_links: bool = False,
) -> str:
    """Return the command that trains on converted files, safe to paste.

    Args:
        folder: image folder.
        num_classes: number of classes.
        output: folder of `train.json` and `val.json`.
        follow_links: open images that are symbolic links out of their folder.
    """
    settings = {
        "num_classes": str(num_classes),
        "remap_mscoco_category": "False",
    }
    for part in ("train", "val"):
        prefix = f"{part}_dataloader.dataset"
        settings |= {
            f"{prefix}.img_folder": _yaml_text(str(folder)),
            f"{prefix}.ann_file": _yaml_text(
                os.path.abspath(output / f"{part}.json")
            ),
        }
        if follow_links:
            settings[f"{prefix}.follow_links"] = "True"
    words = [shlex.quote(f"{key}={value}") for key, value in settings.items()]
    return f"python train.py -c {CONFIG} -u {' '.join(words)}"


def _yaml_text(text: str) -> str:
    """Return a text, quoted if YAML would not read it back unchanged."""
    try:
        return text if yaml.safe_load(text) == text else json.dumps(text)
    except yaml.YAMLError:
        return json.dumps(text)
