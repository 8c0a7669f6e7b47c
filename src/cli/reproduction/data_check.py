"""The check of the data set before training: faults that training refuses, and the number of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...core.counts import counted
from ...core.errors import DataError
from ...core.yaml_config import YAMLConfig
from ...data.preparation.check import check, is_repaired
from ...data.preparation.check_report import Report
from ...data.preparation.data_set import data_sets_of, training_transforms
from ...data.preparation.image_file_check import ImageCheck
from ...runtime.log import say
from ...runtime.machine_checks import usable_cores
from .coco_files import CocoFiles, has_classes_of_coco, remark_about

LINES = 3
"""Faults of each kind that are printed; the report file has all of them."""

MAX_THREADS = 16


def check_data(
    cfg: YAMLConfig, files: CocoFiles, report: Path, *, quick: bool
) -> dict[str, Any]:
    """Check all labels and images, print what was found, and return the number of images.

    COCO itself has a few boxes without area and images without objects. What training repairs or drops, and
    counts, is therefore printed and accepted.

    Args:
        cfg: configuration that names the files.
        files: the same files.
        report: file for all findings.
        quick: read only the headers of images.

    Returns:
        `train` and `val`, the numbers of images, and `classes`, whether the classes are COCO's.

    Raises:
        DataError: if training would refuse the data.
    """
    data_sets, queries = data_sets_of(cfg.resolved_cfg)
    threads = min(MAX_THREADS, usable_cores())
    images = ImageCheck(decode=not quick, workers=threads)
    transforms = training_transforms(cfg.resolved_cfg)
    found = check(data_sets, images, queries=queries, transforms=transforms)
    for line in found.lines(LINES):
        say(line)
    found.write(report)
    _refuse_faults(found, report)
    counts: dict[str, Any] = {}
    for part, checked in zip(("train", "val"), found.checked):
        assert checked is not None  # otherwise it has a fault
        counts[part] = len(checked.examined.content.images)
    classes = has_classes_of_coco(files)
    say(remark_about(counts, classes=classes))
    return {**counts, "classes": classes}


def _refuse_faults(found: Report, report: Path) -> None:
    """Raise an error if there is a fault that training does not repair."""
    left = 0
    names: dict[str, None] = {}
    for group in found.groups:
        if group.is_fault and not is_repaired(group):
            left += group.count
            names[group.file] = None
    if left:
        raise DataError(
            f"{counted(left, 'fault')} that training does not repair in {', '.join(names)} (listed in "
            f"{report}); unpack the archive of these files again"
        )
