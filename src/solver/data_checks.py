"""Check image files, image sizes and the metric of the best model before a run starts."""

from __future__ import annotations

from pathlib import Path

from ..core.commands import command_name
from ..core.contracts import Evaluator, ListsMetrics
from ..core.detection_data import DetectionData
from ..core.errors import ConfigError, DataError
from ..core.loader_contracts import DetectionLoader, MixesImages
from ..core.validate import did_you_mean
from ..core.yaml_config import YAMLConfig
from ..detection.weight_file import WeightFile
from ..runtime.distributed import barrier, is_main
from ..runtime.log import logger


def check_images(
    cfg: YAMLConfig, data_sets: list[DetectionData], folder: Path
) -> None:
    """Check all image files on all ranks without decoding them; rank 0 logs data warnings.

    Args:
        cfg: configuration of the run; with `strict`, warnings raise an error.
        data_sets: training and validation data of a run, or only the validation data of an evaluation.
        folder: folder for the header data, which the next start reuses.

    Raises:
        DataError: if images are missing or contradict their labels; with `strict`, for any data warning.
    """
    parts = ["val"] if len(data_sets) == 1 else ["train", "val"]
    warnings: list[str] = []
    for name, data in zip(parts, data_sets):
        if is_main():
            _compare_sizes(cfg, data)
        cache = folder / f"images.{name}.npz"
        warnings += data.check(strict=cfg.settings.strict, cache=cache)
    warnings += _differing_bit_depths(data_sets)
    if is_main():
        warnings += data_sets[0].describe_duplicates(*data_sets[1:])
        _report(warnings, strict=cfg.settings.strict)
    barrier()


def _differing_bit_depths(data_sets: list[DetectionData]) -> list[str]:
    """Return a warning if 16-bit images are scaled differently in training and evaluation."""
    depths = [getattr(data, "bit_depth", None) or 16 for data in data_sets]
    if len(set(depths)) < 2:
        return []
    return [
        f"train_dataloader.dataset.bit_depth is {depths[0]} and val_dataloader.dataset.bit_depth is "
        f"{depths[1]}; 16-bit images have another brightness in evaluation, and inference uses its value"
    ]


def warn_of_other_bit_depth(file: WeightFile, data: DetectionData) -> None:
    """Warn if weights are evaluated with another scaling of 16-bit images than they were trained with."""
    if "bit_depth" not in file.meta:  # an older file, or one of D-FINE
        return
    trained = file.bit_depth or 16
    used = getattr(data, "bit_depth", None) or 16
    if used != trained:
        logger.warning(
            "%s was trained with bit_depth %d, but val_dataloader.dataset.bit_depth is %d; 16-bit images "
            "have another brightness",
            file.path,
            trained,
            used,
        )


def _report(warnings: list[str], *, strict: bool) -> None:
    """Log data warnings, or raise an error with all of them if `strict` is set."""
    if not warnings:
        return
    if strict:
        raise DataError(
            f"strict treats data warnings as errors, and there are {len(warnings)}: {'; '.join(warnings)}"
        )
    for line in warnings:
        logger.warning("%s", line)
    logger.info("%s lists all of them, with file and id", command_name("check"))


def _compare_sizes(cfg: YAMLConfig, data: DetectionData) -> None:
    """Warn if images are resized to another size than the model expects: it works, but is rarely intended."""
    size = data.output_size
    expected = cfg.yaml_cfg.get("eval_spatial_size")
    if size and expected and list(size) != list(expected):
        logger.warning(
            "images of %s are resized to %d x %d (height x width) but eval_spatial_size is %d x %d; set "
            "both to the same size",
            data.ann_file,
            *size,
            *expected,
        )


def check_best_metric(
    metric: str, evaluator: Evaluator, dataset: DetectionData
) -> None:
    """Check that the validation data define the metric that selects the best model.

    Raises:
        ConfigError: if the evaluator does not have the metric, or if it is undefined on this data.
    """
    if not isinstance(evaluator, ListsMetrics):  # a user's own evaluator
        return
    known = list(evaluator.metric_names)
    if metric not in known:
        raise ConfigError(
            f"best_metric is '{metric}', but the evaluator gives "
            f"{', '.join(known)}{did_you_mean(metric, known)}"
        )
    undefined = evaluator.undefined_metrics()
    if metric in undefined:
        defined = ", ".join(name for name in known if name not in undefined)
        raise ConfigError(
            f"best_metric is '{metric}', which {dataset.ann_file} does not define: {undefined[metric]}; set "
            f"best_metric to one of {defined}"
        )


def refuse_mixing(loader: DetectionLoader) -> None:
    """Raise if the validation loader mixes images, because each image is evaluated on its own."""
    mixing: list[str] = []
    for part in (loader.collate_fn, loader.dataset):
        if isinstance(part, MixesImages):
            mixing += part.mixing
    if mixing:
        raise ConfigError(
            f"val_dataloader has {', '.join(mixing)}, but images are evaluated as they are; only "
            "train_dataloader may mix them"
        )
