"""What is looked at before a run begins: whether its images are there, and whether they are what the labels and the model take them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, DataError
from ..core.validate import did_you_mean
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import barrier, is_main
from ..runtime.log import logger


def check_images(cfg: YAMLConfig, data_sets: list[Any], folder: Path) -> None:
    """Look at all image files from outside, on all ranks; rank 0 says what is doubtful about the data, or with `strict` ends the run for it.

    Args:
        cfg: of the run.
        data_sets: for training, if there is one, and for evaluation.
        folder: where what was seen is kept for the next start.

    Raises:
        DataError: if images are missing or contradict their labels; with `strict`, for anything doubtful.
    """
    doubts: list[str] = []
    if len(data_sets) > 1 and (both := data_sets[0].images_in_common(data_sets[1])):
        doubts.append(
            f"{len(both)} images are used for training and for evaluation (first: {both[0]}); the score will be too good"
        )
    for name, data in zip(("train", "val")[-len(data_sets) :], data_sets):
        if cfg.settings.strict:
            data.refuse_bad_images()
        doubts += data.labels.findings.describe()
        doubts += _account_for_labels(data)
        if is_main():
            data.check_images_exist()
            _compare_sizes(cfg, data)
        barrier()
        data.scan_images(folder / f"images.{name}.npz")
        doubts += data.describe_frames()
    if is_main():
        doubts += data_sets[0].describe_twins(*data_sets[1:])
        if doubts and cfg.settings.strict:
            raise DataError(
                f"with strict no warning about the data is accepted, and there are {len(doubts)}: {'; '.join(doubts)}"
            )
        for line in doubts:
            logger.warning("%s", line)
        if doubts:
            logger.info("tools/dataset/check.py lists all of them, with file and id")
    barrier()


def _account_for_labels(data: Any) -> list[str]:
    """Log what becomes of the labels between file and loss; return warnings about boxes that are too small to be learned.

    Raises:
        DataError: if more than half of the boxes are lost.
    """
    if not hasattr(data, "ledger"):  # a data set of a user's own
        return []
    ledger = data.ledger()
    if is_main():
        for line in ledger.lines():
            logger.info("%s", line)
    ledger.raise_if_mostly_lost()
    return [
        f"{ledger.path}: boxes {entry.reason}: {entry.count}; they are not learned, but evaluation would count them"
        for entry in ledger.entries
        if entry.cause == "size"
    ]


def _compare_sizes(cfg: YAMLConfig, data: Any) -> None:
    """Say so if images come in another size than the model is made for: it works, but is rarely meant."""
    size, made_for = data.transforms.output_size, cfg.yaml_cfg.get("eval_spatial_size")
    if size and made_for and list(size) != list(made_for):
        logger.warning(
            "images of %s come as %d x %d (height x width) but eval_spatial_size is %d x %d; set them alike",
            data.ann_file,
            *size,
            *made_for,
        )


def check_best_metric(metric: str, evaluator: Any, dataset: Any) -> None:
    """Make sure that the validation data defines the metric by which models are compared.

    Raises:
        ConfigError: if the evaluator does not have it, or would leave it undefined.
    """
    known = list(getattr(evaluator, "metric_names", []))
    if known and metric not in known:
        raise ConfigError(
            f"best_metric is '{metric}', but the evaluator gives {', '.join(known)}{did_you_mean(metric, known)}"
        )
    undefined = evaluator.undefined_metrics() if hasattr(evaluator, "undefined_metrics") else {}
    if metric in undefined:
        raise ConfigError(
            f"best_metric is '{metric}', which {dataset.ann_file} does not define: {undefined[metric]}; set "
            f"best_metric to one of {', '.join(name for name in known if name not in undefined)}"
        )


def refuse_mixing(loader: Any) -> None:
    """Make sure that images are evaluated as they are: what is found is held against the labels of each."""
    if mixing := [
        name
        for part in (loader.collate_fn, loader.dataset.transforms)
        for name in getattr(part, "mixing", [])
    ]:
        raise ConfigError(
            f"val_dataloader has {', '.join(mixing)}, but images are evaluated as they are; only train_dataloader may mix them"
        )
