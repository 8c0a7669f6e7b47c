"""Conversion of data sets in other layouts to COCO files, with the command for training."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml

from ...core.errors import ConfigError
from ...core.paths import did_you_mean_file
from ...runtime.files import prepare_output_dir, refuse_replacing
from ...runtime.own_files import prepare_report
from .labelled_images import ConversionError, LabelledImages, write_coco_parts
from .splitting import split_if_needed
from .voc import read_voc
from .yolo import read_yolo

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
) -> Iterator[str]:
    """Convert a data set in the layout of YOLO or Pascal VOC to `train.json` and `val.json`.

    Yields lines about the results.

    Args:
        source: `data.yaml` of YOLO, or a folder; a folder with `Annotations` is read as Pascal VOC.
        output: output folder.
        val_fraction: fraction of the training images to split off for validation if there are none, between 0
            and 1.
        seed: random seed of this split.
        difficult: Pascal VOC: one of `voc.DIFFICULT`.
        zero_based: Pascal VOC: corners are counted from 0.
        follow_links: open files that are symbolic links out of the data set.
        drop_boxes: drop boxes without area or outside their image, which are faults otherwise.
        report: file for all faults, if there are any.

    Raises:
        ConversionError: if there are faults; one error lists all of them, and no labels are written.
        ConfigError: if the source does not exist, or the folder is not writable.
    """
    if not source.exists():
        hint = did_you_mean_file(source)
        raise ConfigError(
            f"{source} does not exist; name YOLO's data.yaml or the folder of the data set{hint}"
        )
    if report is not None:
        prepare_report(report, "--report")
    try:
        if (source / "Annotations").is_dir():
            data = read_voc(
                source,
                difficult=difficult,
                zero_based=zero_based,
                follow_links=follow_links,
                drop_boxes=drop_boxes,
            )
        else:
            data = read_yolo(
                source, follow_links=follow_links, drop_boxes=drop_boxes
            )
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
    yield training_command(data, output, follow_links=follow_links)


def training_command(
    data: LabelledImages,
    output: Path,
    *,
    follow_links: bool = False,
) -> str:
    """Return the command that trains on converted files, safe to paste."""
    settings = {
        "num_classes": str(len(data.categories)),
        "remap_mscoco_category": "False",
    }
    for part in ("train", "val"):
        prefix = f"{part}_dataloader.dataset"
        settings |= {
            f"{prefix}.img_folder": _yaml_text(str(data.folder)),
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
