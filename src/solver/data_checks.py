"""What is looked at before a run begins: whether its images are there, and whether they are what the labels and the model take them for."""

from __future__ import annotations

from pathlib import Path

from ..core.contracts import DetectionData, DetectionLoader, Evaluator, ListsMetrics, MixesImages
from ..core.errors import ConfigError, DataError
from ..core.validate import did_you_mean
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import barrier, is_main
from ..runtime.log import logger


def check_images(cfg: YAMLConfig, data_sets: list[DetectionData], folder: Path) -> None:
    """Look at all image files from outside, on all ranks; rank 0 says what is doubtful about the data, or with `strict` ends the run for it.

    Args:
        cfg: of the run.
        data_sets: for training, if there is one, and for evaluation.
        folder: where what was seen is kept for the next start.

    Raises:
        DataError: if images are missing or contradict their labels; with `strict`, for anything doubtful.
    """
    doubts: list[str] = []
    for name, data in zip(("train", "val")[-len(data_sets) :], data_sets):
        if is_main():
            _compare_sizes(cfg, data)
        doubts += data.check(strict=cfg.settings.strict, cache=folder / f"images.{name}.npz")
    if is_main():
        doubts += data_sets[0].describe_duplicates(*data_sets[1:])
        if doubts and cfg.settings.strict:
            raise DataError(
                f"with strict no warning about the data is accepted, and there are {len(doubts)}: {'; '.join(doubts)}"
            )
        for line in doubts:
            logger.warning("%s", line)
        if doubts:
            logger.info("tools/dataset/check.py lists all of them, with file and id")
    barrier()


def _compare_sizes(cfg: YAMLConfig, data: DetectionData) -> None:
    """Say so if images come in another size than the model is made for: it works, but is rarely meant."""
    size, made_for = data.output_size, cfg.yaml_cfg.get("eval_spatial_size")
    if size and made_for and list(size) != list(made_for):
        logger.warning(
            "images of %s come as %d x %d (height x width) but eval_spatial_size is %d x %d; set them alike",
            data.ann_file,
            *size,
            *made_for,
        )


def check_best_metric(metric: str, evaluator: Evaluator, dataset: DetectionData) -> None:
    """Make sure that the validation data defines the metric by which models are compared.

    Raises:
        ConfigError: if the evaluator does not have it, or would leave it undefined.
    """
    if not isinstance(evaluator, ListsMetrics):  # one of a user's own
        return
    known = list(evaluator.metric_names)
    if metric not in known:
        raise ConfigError(
            f"best_metric is '{metric}', but the evaluator gives {', '.join(known)}{did_you_mean(metric, known)}"
        )
    undefined = evaluator.undefined_metrics()
    if metric in undefined:
        raise ConfigError(
            f"best_metric is '{metric}', which {dataset.ann_file} does not define: {undefined[metric]}; set "
            f"best_metric to one of {', '.join(name for name in known if name not in undefined)}"
        )


def refuse_mixing(loader: DetectionLoader) -> None:
    """Make sure that images are evaluated as they are: what is found is held against the labels of each."""
    parts = (loader.collate_fn, loader.dataset)
    mixing = [name for part in parts if isinstance(part, MixesImages) for name in part.mixing]
    if mixing:
        raise ConfigError(
            f"val_dataloader has {', '.join(mixing)}, but images are evaluated as they are; only train_dataloader may mix them"
        )
