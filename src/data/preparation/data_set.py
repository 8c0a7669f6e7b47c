"""An annotation file and its image folder, as `check` and `fix` take them, also from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.build import create
from ...core.errors import ConfigError
from ..dataset.box_formats import BoxFormat
from ..dataset.picture import is_bit_depth
from ..transforms.compose import Compose


@dataclass(frozen=True)
class DataSet:
    """An annotation file and the folder of its images."""

    annotations: Path
    images: Path
    follow_links: bool = False
    """Open images that are symbolic links out of the folder."""
    bit_depth: int | None = None
    """Number of bits that the samples of 16-bit images use; None means 16."""
    box_format: BoxFormat | None = None
    """Format of `bbox`; None expects COCO's format and looks for signs of another one."""


def data_sets_of(config: dict[str, Any]) -> tuple[list[DataSet], int | None]:
    """Return the data sets that a configuration names, and the number of its queries if it has one.

    Raises:
        ConfigError: if it does not name data sets.
    """
    data_sets = []
    for part in ("train_dataloader", "val_dataloader"):
        loader = config.get(part) or {}
        dataset = loader.get("dataset") or {}
        if not dataset.get("ann_file") or not dataset.get("img_folder"):
            raise ConfigError(
                f"the configuration has no {part}.dataset.ann_file or no img_folder"
            )
        bit_depth = dataset.get("bit_depth")
        if not is_bit_depth(bit_depth):
            raise ConfigError(
                f"{part}.dataset.bit_depth is {bit_depth}, expected 8 to 16"
            )
        order = dataset.get("box_order")
        unit = dataset.get("box_unit")
        box_format = None
        if order is not None or unit is not None:
            box_format = BoxFormat(order or "xywh", unit or "pixels")
        data = DataSet(
            Path(dataset["ann_file"]),
            Path(dataset["img_folder"]),
            follow_links=bool(dataset.get("follow_links")),
            bit_depth=bit_depth,
            box_format=box_format,
        )
        data_sets.append(data)
    transformer = config.get("DFINETransformer") or {}
    return data_sets, transformer.get("num_queries")


def training_transforms(config: dict[str, Any]) -> Compose | None:
    """Build the transforms of a configuration's training data, or return None if it names none."""
    loader = config.get("train_dataloader") or {}
    dataset = loader.get("dataset") or {}
    if not dataset.get("transforms"):
        return None
    return create(dataset["transforms"], config)
