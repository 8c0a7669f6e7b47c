"""Open the data of a run (loaders, classes, evaluator) and check them before anything expensive is built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.contracts import Evaluator
from ..core.detection_data import DetectionData
from ..core.errors import DataError
from ..core.loader_contracts import DetectionLoader
from ..core.own_data import call, check_item, place
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import check_ranks_agree, is_main
from .class_tables import class_table, compare_categories, settle_classes
from .data_checks import (
    check_best_metric,
    check_images,
    refuse_mixing,
    warn_of_other_bit_depth,
)
from .resume import check_same_run
from .run_identity import Identity, check_same_data, data_identity, digest
from .start_weights import Start


@dataclass(frozen=True)
class EvaluationData:
    """Data of an evaluation."""

    val_loader: DetectionLoader
    evaluator: Evaluator
    classes: list[dict[str, Any]]
    """`id` and `name` of each label."""
    identity: dict[str, Identity]
    """Digests of labels, classes and images, by part: "train" and "val"."""


@dataclass(frozen=True)
class RunData(EvaluationData):
    """Data of a training run."""

    train_loader: DetectionLoader
    changed: bool
    """Whether a resumed run has other data than it started with; this needs `--override`."""


def open_run_data(
    cfg: YAMLConfig, start: Start, seed: int, folder: Path
) -> RunData:
    """Read the labels, check the image files, and set the number of classes.

    Args:
        cfg: configuration of the run; `num_classes` is set if it is not given.
        start: files that the run starts from.
        seed: random seed of the run.
        folder: folder for the header data of images, which the next start reuses.

    Raises:
        DataError: if the data is invalid, or differs from that of the run to resume.
        ConfigError: if configuration and data contradict each other.
        CheckpointError: if the data has classes that the weights do not have.
    """
    val_loader = cfg.val_dataloader
    refuse_mixing(val_loader)
    train_loader = _open_train_loader(cfg, seed)
    train = train_loader.dataset
    compare_categories(train, val_loader.dataset)
    train.allow_bad_images()
    train.allow_reduced_decoding()
    parts = {"train": train, "val": val_loader.dataset}
    check_first_items(parts)
    identity = _check_data(cfg, start, seed, folder, parts)
    changed = _check_resumed(cfg, start, parts)
    if not train.usable_boxes():
        raise DataError(f"{train.ann_file} has no usable box to learn from")
    return RunData(
        val_loader=val_loader,
        evaluator=_build_evaluator(cfg, val_loader.dataset),
        classes=class_table(train),
        identity=identity,
        train_loader=train_loader,
        changed=changed,
    )


def open_evaluation_data(
    cfg: YAMLConfig, start: Start, seed: int, folder: Path
) -> EvaluationData:
    """Read and check the data of an evaluation, as `open_run_data` does; there is no training data."""
    val_loader = cfg.val_dataloader
    refuse_mixing(val_loader)
    parts = {"val": val_loader.dataset}
    check_first_items(parts)
    identity = _check_data(cfg, start, seed, folder, parts)
    if start.file is not None and is_main():
        warn_of_other_bit_depth(start.file, val_loader.dataset)
    evaluator = _build_evaluator(cfg, val_loader.dataset)
    return EvaluationData(
        val_loader, evaluator, class_table(val_loader.dataset), identity
    )


def check_first_items(parts: Mapping[str, DetectionData]) -> None:
    """Check the first item of data sets that have no file of labels: those of users may return anything.

    Args:
        parts: data sets by part; "train" needs boxes as cxcywh in 0..1.

    Raises:
        DataError: if an item cannot be put into a batch.
    """
    for part, data in parts.items():
        if len(data) and not data.has_checked_labels:
            item = call(data, data.__getitem__, 0)
            where = place(data, "__getitem__", 0)
            check_item(where, item, data.num_classes, training=part == "train")


def _check_data(
    cfg: YAMLConfig,
    start: Start,
    seed: int,
    folder: Path,
    parts: dict[str, DetectionData],
) -> dict[str, Identity]:
    """Check image files and classes, check that all ranks agree, and return the data's identity."""
    data_sets = list(parts.values())
    check_ranks_agree({"number of images": [len(data) for data in data_sets]})
    check_images(cfg, data_sets, folder)
    settle_classes(cfg, data_sets, start.file, same_classes=start.keeps_classes)
    identity = data_identity(parts)
    check_ranks_agree(
        {"data": digest(identity), "configuration": cfg.to_yaml(), "seed": seed}
    )
    return identity


def _build_evaluator(cfg: YAMLConfig, data: DetectionData) -> Evaluator:
    evaluator = cfg.evaluator(data.ground_truth())
    check_best_metric(cfg.settings.best_metric, evaluator, data)
    return evaluator


def _open_train_loader(cfg: YAMLConfig, seed: int) -> DetectionLoader:
    loader = cfg.train_dataloader
    loader.batch_sampler.equal_shares = True
    loader.set_seed(seed)
    return loader


def _check_resumed(
    cfg: YAMLConfig, start: Start, parts: dict[str, DetectionData]
) -> bool:
    """Compare configuration and data with those of the resumed run; return whether the data has changed."""
    if start.state is None:
        return False
    override = cfg.settings.override
    check_same_run(
        start.state["meta"]["config"], cfg.yaml_cfg, override=override
    )
    return check_same_data(start.state.get("data"), parts, override=override)
