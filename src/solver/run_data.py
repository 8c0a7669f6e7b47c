"""What a run learns from and is scored on: loaders, classes and evaluator, checked before anything costly is built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.contracts import DetectionData, DetectionLoader, Evaluator
from ..core.errors import DataError
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import check_ranks_agree
from .class_tables import class_table, compare_categories, settle_classes
from .data_checks import check_best_metric, check_images, refuse_mixing
from .resume import check_same_run
from .run_identity import Identity, check_same_data, data_identity, digest
from .start_weights import Start


@dataclass(frozen=True)
class RunData:
    """The data of a run."""

    train_loader: DetectionLoader | None
    """None in an evaluation."""
    val_loader: DetectionLoader
    evaluator: Evaluator
    classes: list[dict[str, Any]]
    """`id` and `name` of each label."""
    identity: dict[str, Identity]
    """Digests of labels, classes and images, by part: "train" and "val"."""
    changed: bool
    """Whether a run is resumed with other data than it began with, which was asked for."""


def open_run_data(cfg: YAMLConfig, start: Start, seed: int, folder: Path, *, training: bool) -> RunData:
    """Read the labels, look at the image files, and decide how many classes there are.

    Args:
        cfg: of the run; `num_classes` is set if it leaves it open.
        start: what the run starts from.
        seed: of the run.
        folder: where headers of images are kept for the next start.
        training: False for an evaluation, which needs no training data.

    Raises:
        DataError: if the data cannot be used, or is not that of the run to resume.
        ConfigError: if configuration and data contradict each other.
        CheckpointError: if the data has classes that the weights do not know.
    """
    val_loader = cfg.val_dataloader
    refuse_mixing(val_loader)
    train_loader = _open_train_loader(cfg, seed) if training else None
    parts = {"val": val_loader.dataset}
    if train_loader is not None:
        parts = {"train": train_loader.dataset, **parts}
    data_sets = list(parts.values())
    if training:
        compare_categories(*data_sets)
        data_sets[0].allow_bad_images()
    check_ranks_agree({"number of images": [len(data) for data in data_sets]})
    check_images(cfg, data_sets, folder)
    settle_classes(cfg, data_sets, start.file, same_classes=start.keeps_classes)
    identity = data_identity(parts)
    agreed = {"data": digest(identity), "configuration": cfg.to_yaml(), "seed": seed}
    check_ranks_agree(agreed)
    changed = _check_resumed(cfg, start, parts)
    if training and not data_sets[0].usable_boxes():
        raise DataError(f"{data_sets[0].ann_file} has no usable box to learn from")
    evaluator = cfg.evaluator(val_loader.dataset.ground_truth())
    check_best_metric(cfg.settings.best_metric, evaluator, val_loader.dataset)
    return RunData(train_loader, val_loader, evaluator, class_table(data_sets[0]), identity, changed)


def _open_train_loader(cfg: YAMLConfig, seed: int) -> DetectionLoader:
    loader = cfg.train_dataloader
    loader.batch_sampler.equal_shares = True
    loader.set_seed(seed)
    return loader


def _check_resumed(cfg: YAMLConfig, start: Start, parts: dict[str, DetectionData]) -> bool:
    """Compare configuration and data with those of the run that is resumed; return whether the data has changed."""
    if start.state is None:
        return False
    override = cfg.settings.override
    check_same_run(start.state["meta"]["config"], cfg.yaml_cfg, override=override)
    return check_same_data(start.state.get("data"), parts, override=override)
