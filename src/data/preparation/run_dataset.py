"""The data set of a run as settings of its configuration, which `train.py --data` and other commands use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.errors import DataError
from ...core.fault_lists import listed
from ...runtime.log import logger
from .any_dataset import FoundDataset, find_dataset


def with_dataset(
    overrides: Mapping[str, Any],
    data: str | Path | None,
    *,
    data_format: str | None = None,
    images: str | Path | None = None,
    val_fraction: float = 0.1,
    follow_links: bool = False,
) -> dict[str, Any]:
    """Return settings that use a data set, and log what was found.

    Args:
        overrides: settings of `-u` and of flags, by nested keys. They win over the number of classes, but not
            over the files and folders.
        data: folder, `data.yaml` or COCO file, as for `find_dataset`; None returns the settings unchanged.
        data_format: as for `find_dataset`.
        images: as for `find_dataset`.
        val_fraction: as for `find_dataset`.
        follow_links: as for `find_dataset`; True also sets `dataset.follow_links`.

    Raises:
        DataError: if no labels are found or they have faults, or with `strict` if labels are changed.
        ConfigError: if the path does not exist.
    """
    if data is None:
        return dict(overrides)
    found = find_dataset(
        data,
        data_format=data_format,
        images=images,
        val_fraction=val_fraction,
        follow_links=follow_links,
        for_evaluation=bool(overrides.get("test_only")),
    )
    for line in found.remarks:
        logger.info("%s", line)
    if found.warnings and overrides.get("strict"):
        raise DataError(
            f"{data}: {listed(found.warnings, '; ')}; --strict accepts no changed labels"
        )
    for line in found.warnings:
        logger.warning("%s", line)
    settings = dataset_settings(found, follow_links=follow_links)
    return merged(settings, overrides)


def dataset_settings(
    found: FoundDataset, *, follow_links: bool = False
) -> dict[str, Any]:
    """Return the settings of a configuration that use a data set, by nested keys.

    The number of classes is counted in the data.
    """
    settings: dict[str, Any] = {
        "num_classes": None,
        "remap_mscoco_category": False,
    }
    for part, images, labels in (
        ("train", found.train_images, found.train_ann),
        ("val", found.val_images, found.val_ann),
    ):
        dataset: dict[str, Any] = {
            "img_folder": str(images),
            "ann_file": str(labels),
        }
        if follow_links:
            dataset["follow_links"] = True
        settings[f"{part}_dataloader"] = {"dataset": dataset}
    return settings


_FILES = ("img_folder", "ann_file")


def merged(
    settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return both settings, merged by nested keys; `overrides` wins, except for files and folders of data."""
    result = dict(settings)
    for key, value in overrides.items():
        own = result.get(key)
        if isinstance(own, dict) and isinstance(value, dict):
            result[key] = merged(own, value)
        elif key not in _FILES or key not in result:
            result[key] = value
    return result
