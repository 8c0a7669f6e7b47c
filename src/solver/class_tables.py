"""Which label means which class: settled before a model is built, and compared between files that must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.coco_categories import differing_categories
from ..core.errors import ConfigError, DataError
from ..core.yaml_config import YAMLConfig
from ..detection.class_names import find_labels
from ..detection.weight_file import WeightFile
from ..runtime.log import logger

LISTED = 20


def settle_classes(
    cfg: YAMLConfig, data_sets: Sequence[Any], file: WeightFile | None, *, same_classes: bool
) -> None:
    """Decide how many classes there are and which label each category has.

    Args:
        cfg: gets `num_classes` if it leaves it open.
        data_sets: get the labels of the file where those count.
        file: the weights that the model starts from, if any.
        same_classes: the file's own classes go on to count (it is evaluated or resumed); otherwise they are the data's.

    Raises:
        ConfigError: if the configuration has fewer classes than the data needs.
        CheckpointError: if the data has classes that the file does not know.
    """
    ann_file, count = data_sets[0].ann_file, cfg.yaml_cfg.get("num_classes")
    if file is not None and file.classes and same_classes:
        for data in data_sets:
            categories = list(zip(data.category_ids, data.class_names))
            data.use_labels(find_labels(categories, file.classes, ann_file=data.ann_file, weights=file.path))
        if count is None:
            cfg.set("num_classes", file.num_classes, f"counted in {file.path}")
        return
    needed = max(data.num_classes for data in data_sets)
    if count is None:
        cfg.set("num_classes", needed, f"counted in {ann_file}")
    elif count < needed:
        raise ConfigError(
            f"num_classes is {count}, but {ann_file} has {needed} categories; set it to {needed} or take it out"
        )
    elif count > needed:
        logger.info("num_classes is %d, the data has %d categories; the others stay empty", count, needed)
        highest = max(max(data.category_ids) for data in data_sets)
        if (
            file is not None
            and not file.classes
            and highest < count
            and not data_sets[0].remap_mscoco_category
        ):
            logger.info(
                "%s names no classes and num_classes exceeds the categories: labels are category ids, as in D-FINE's own trainer",
                file.path,
            )
            for data in data_sets:
                data.use_labels(data.category_ids)
    for data in data_sets[1:]:
        _use_labels_by_name(data_sets[0], data)


def _use_labels_by_name(train: Any, other: Any) -> None:
    """Give the categories of a data set the labels that those of the same names have in training, if their ids differ."""
    ours, theirs = (dict(zip(data.category_ids, data.class_names)) for data in (train, other))
    if ours == theirs or train.remap_mscoco_category:
        return
    label = {name: label for label, name in train.label_names.items()}
    other.use_labels([label[name] for name in other.class_names])
    logger.info(
        "%s has the categories of %s under other ids; they are matched by name",
        other.ann_file,
        train.ann_file,
    )


def class_table(dataset: Any) -> list[dict[str, Any]]:
    """Return id and name of each label of a data set, for the checkpoint."""
    names = {
        int(label): (int(category), name)
        for label, category, name in zip(dataset.label_of_category, dataset.category_ids, dataset.class_names)
    }
    return [
        {"id": names[label][0], "name": names[label][1]}
        if label in names
        else {"id": -1, "name": f"(unused {label})"}
        for label in range(max(names) + 1)
    ]


def compare_categories(train: Any, val: Any) -> None:
    """Refuse a validation file whose categories are not those of the training file, by id or at least by name.

    Raises:
        DataError: with the ids under which the two differ.
    """
    ours, theirs = (dict(zip(data.category_ids, data.class_names)) for data in (train, val))
    if differing := differing_categories(ours, theirs):
        raise DataError(
            f"categories differ between {train.ann_file} and {val.ann_file}: {'; '.join(differing[:LISTED])}; both files "
            "must have the same names, ids may differ"
        )
