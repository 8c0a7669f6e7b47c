"""Assign labels to classes before a model is built, and compare the classes of files that must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.coco_categories import differing_categories
from ..core.counts import counted
from ..core.errors import ConfigError, DataError
from ..core.yaml_config import YAMLConfig
from ..detection.class_names import find_labels
from ..detection.weight_file import WeightFile
from ..runtime.log import logger

LISTED = 20


def settle_classes(
    cfg: YAMLConfig,
    data_sets: Sequence[Any],
    file: WeightFile | None,
    *,
    same_classes: bool,
) -> None:
    """Set the number of classes and the label of each category.

    Args:
        cfg: configuration of the run; `num_classes` is set if it is not given.
        data_sets: data sets of the run; they get the labels of the file if `same_classes` is True.
        file: start weights, if there are any.
        same_classes: keep the classes of the file, because it is evaluated or resumed; otherwise use those of
            the data.

    Raises:
        ConfigError: if the configuration has fewer classes than the data needs.
        CheckpointError: if the data has classes that the file does not have.
    """
    ann_file = data_sets[0].ann_file
    count = cfg.yaml_cfg.get("num_classes")
    if file is not None and file.classes and same_classes:
        for data in data_sets:
            categories = list(zip(data.category_ids, data.class_names))
            labels = find_labels(
                categories,
                file.classes,
                ann_file=data.ann_file,
                weights=file.path,
            )
            data.use_labels(labels)
        if count is None:
            cfg.set("num_classes", file.num_classes, f"counted in {file.path}")
        return
    needed = max(data.num_classes for data in data_sets)
    if count is None:
        cfg.set("num_classes", needed, f"counted in {ann_file}")
    elif count < needed:
        raise ConfigError(
            f"num_classes is {count}, but {ann_file} has {counted(needed, 'category', 'categories')}; "
            f"set it to {needed} or remove it"
        )
    elif count > needed:
        logger.info(
            "num_classes is %d, the data has %s; the others are unused",
            count,
            counted(needed, "category", "categories"),
        )
        highest = max(max(data.category_ids) for data in data_sets)
        ids_fit = highest < count and not data_sets[0].remap_mscoco_category
        if file is not None and not file.classes and ids_fit:
            logger.info(
                "%s has no class names and num_classes exceeds the number of categories: category ids are "
                "used as labels, as in D-FINE's own trainer",
                file.path,
            )
            for data in data_sets:
                data.use_labels(data.category_ids)
    for data in data_sets[1:]:
        _use_labels_by_name(data_sets[0], data)


def _use_labels_by_name(train: Any, other: Any) -> None:
    """Give each category the label of the training category with the same name, if the ids differ."""
    ours = _names_by_id(train)
    if ours == _names_by_id(other) or train.remap_mscoco_category:
        return
    label = {name: label for label, name in train.label_names.items()}
    other.use_labels([label[name] for name in other.class_names])
    logger.info(
        "%s has the categories of %s with different ids; they are matched by name",
        other.ann_file,
        train.ann_file,
    )


def class_table(dataset: Any) -> list[dict[str, Any]]:
    """Return the id and name of each label of a data set, for the checkpoint."""
    entries = {}
    for label, category, name in zip(
        dataset.label_of_category, dataset.category_ids, dataset.class_names
    ):
        entries[int(label)] = {"id": int(category), "name": name}
    table = []
    for label in range(max(entries) + 1):
        unused = {"id": -1, "name": f"(unused {label})"}
        table.append(entries.get(label, unused))
    return table


def compare_categories(train: Any, val: Any) -> None:
    """Raise if the validation file does not have the categories of the training file.

    Raises:
        DataError: if neither ids nor names agree; the message lists the ids that differ.
    """
    differing = differing_categories(_names_by_id(train), _names_by_id(val))
    if differing:
        raise DataError(
            f"categories differ between {train.ann_file} and {val.ann_file}: "
            f"{'; '.join(differing[:LISTED])}; both files must have the same names, ids may differ"
        )


def _names_by_id(data: Any) -> dict[int, str]:
    return dict(zip(data.category_ids, data.class_names))
