"""Choose the batch size of a run with `total_batch_size: auto`: the largest one that fits into memory.

The memory of a training step is measured as in the trial before a run (`memory_trial.py`), with a copy of the
model. Accumulation and learning rates then follow from the batch for which the recipe was made
(docs/decisions/0032-automatic-batch-size.md).
"""

from __future__ import annotations

import gc
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..core.counts import counted
from ..core.durations import RunLength
from ..core.errors import ConfigError, ResourceError
from ..core.loader_contracts import DetectionLoader, MultiScaleCollate
from ..core.yaml_config import YAMLConfig
from ..core.yaml_text import parse_yaml
from ..runtime.distributed import gather_objects, world_size
from ..runtime.log import least_severe, logger
from ..runtime.memory import (
    available_memory,
    reset_peak_memory,
    resident_memory,
)
from .memory_trial import ADVICE, peak_of_step
from .phases import Phases
from .training_step import TrainStep

AUTO = "auto"
"""Value of `total_batch_size` for which the batch size is chosen."""

USABLE_ON_GPU = 0.9
"""Fraction of a GPU's memory that the largest batch may use; the rest is for fragments of other sizes."""

USABLE_ON_CPU = 0.8
"""Fraction of the available memory that the largest batch may use; other programs need some later."""

MOST_TIMES_RECIPE = 8
"""The batch is at most so many times that of the recipe: larger ones leave the range of the scaling rules."""

LEAST_STEPS = 10
"""A batch larger than the recipe's leaves at least so many steps in an epoch."""

MEASURABLE = 0.1
"""On a CPU, peaks are compared that differ by at least this fraction."""

LOADER = "train_dataloader"


@dataclass(frozen=True)
class BatchPlan:
    """Images of a step, and how they are divided."""

    per_rank: int
    """Images of one rank in a batch."""
    accumulation: int
    """Batches of one optimizer step."""

    def effective(self, ranks: int) -> int:
        """Return the images of an optimizer step over all ranks."""
        return self.per_rank * self.accumulation * ranks


def is_automatic(cfg: YAMLConfig) -> bool:
    """Return whether the batch size of the training must be chosen.

    Raises:
        ConfigError: if that of the evaluation is "auto", which is supported only for the training.
    """
    val = cfg.yaml_cfg.get("val_dataloader") or {}
    if val.get("total_batch_size") == AUTO:
        raise ConfigError(
            "val_dataloader.total_batch_size is 'auto', which is supported only for train_dataloader; set a "
            f"number ({cfg.origin('val_dataloader', 'total_batch_size')})"
        )
    train = cfg.yaml_cfg.get(LOADER) or {}
    return train.get("total_batch_size") == AUTO


def keep_batch_of_run(cfg: YAMLConfig, saved: str) -> None:
    """Set the batch size with which a run has started, without a new trial.

    Args:
        cfg: configuration of the resumed run, with an automatic batch size.
        saved: its configuration as YAML, from the checkpoint.
    """
    before, _ = parse_yaml(saved, "the configuration in the checkpoint")
    loader = before[LOADER]
    reason = "the run to resume"
    names = ("batch_size", "total_batch_size")
    cfg.set(LOADER, {name: loader.get(name) for name in names}, reason)
    for name in ("grad_accum_steps", "lr_base_batch_size", "lr_scaling"):
        if name in before:
            cfg.set(name, before[name], reason)
    logger.info(
        "total_batch_size is auto: the run keeps its batch of %s with grad_accum_steps %d",
        loader.get("total_batch_size") or f"{loader['batch_size']} per rank",
        cfg.settings.grad_accum_steps,
    )


def choose_batch(
    cfg: YAMLConfig,
    loader: DetectionLoader,
    val_loader: DetectionLoader,
    device: torch.device,
    build_trial: Callable[[YAMLConfig], tuple[TrainStep, Phases]],
) -> None:
    """Set batch size, accumulation and the base of the learning rates. All ranks call this together.

    Args:
        cfg: configuration of the run, with an automatic batch size.
        loader: training loader; its batch sampler gets the batch size.
        val_loader: loader of the evaluation, whose batch must not be larger than what fits.
        device: device of this rank.
        build_trial: builds the training step of a configuration, which is thrown away afterwards.

    Raises:
        ResourceError: if not even one image fits.
        ConfigError: if the batch of the recipe is not known.
    """
    ranks = world_size()
    recipe = batch_of_recipe(cfg, ranks)
    images = len(loader.dataset)
    share = share_of_rank(recipe, images, ranks)
    most = largest_useful(share, images, ranks)
    if _has_rates_of_its_own(cfg):
        most = share
    fits = _measure(cfg, loader, device, build_trial, most, share)
    gc.collect()  # the copy of the model
    if device.type == "cuda":
        torch.cuda.empty_cache()
    found: list[int] = gather_objects(fits)
    fits = min(found)
    plan = plan_batch(fits, share)
    _apply(cfg, loader, plan, recipe, ranks)
    _limit_evaluation(cfg, val_loader, fits, ranks)
    _log(cfg, plan, found, most, recipe, ranks)


def _measure(
    cfg: YAMLConfig,
    loader: DetectionLoader,
    device: torch.device,
    build_trial: Callable[[YAMLConfig], tuple[TrainStep, Phases]],
    most: int,
    share: int,
) -> int:
    """Return the largest batch of this rank, measured with a copy of the model in its last phase."""
    size_hw, objects, num_classes = _largest_step(cfg, loader)
    # what is logged about a copy of the model is logged again about the model
    with least_severe(logging.WARNING, logger.name):
        copied = YAMLConfig.from_run(cfg.to_yaml(), str(cfg.path))
        copied.without_pretrained()
        # a step is the same for any number of steps in an epoch
        copied.resolve_lengths(RunLength(copied.settings.epochs, LEAST_STEPS))
        step, phases = build_trial(copied)
    phases.apply(copied.settings.epochs - 1)

    def peak(images: int) -> int:
        gradients = 0
        if world_size() > 1:  # DistributedDataParallel has a copy
            gradients = _trainable_bytes(step.model)
        measured = peak_of_step(step, images, size_hw, objects, num_classes)
        return measured + gradients

    if device.type == "cuda":
        return largest_that_fits(peak, gpu_budget(device), most)
    waiting = _waiting_bytes(cfg, size_hw)
    return estimate_on_cpu(peak, cpu_budget(), most, share, waiting)


def _trainable_bytes(model: nn.Module) -> int:
    sizes = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            sizes += parameter.numel() * parameter.element_size()
    return sizes


def batch_of_recipe(cfg: YAMLConfig, ranks: int) -> int:
    """Return the images of an optimizer step for which the recipe was made, over all ranks.

    Raises:
        ConfigError: if the configuration does not tell.
    """
    before = cfg.batch_of_recipe
    steps = cfg.settings.grad_accum_steps
    total = before.get("total_batch_size")
    if isinstance(total, int):
        return total * steps
    if before.get("batch_size") and total is None:
        return int(before["batch_size"]) * ranks * steps
    if cfg.settings.lr_base_batch_size:
        return cfg.settings.lr_base_batch_size
    raise ConfigError(
        "train_dataloader.total_batch_size is 'auto', but the batch for which the learning rates were chosen "
        "is not known; set lr_base_batch_size to it"
    )


def share_of_rank(recipe: int, images: int, ranks: int) -> int:
    """Return the images of the recipe on one rank, at most those that an epoch has for it.

    Args:
        recipe: images of an optimizer step of the recipe.
        images: images in the data set.
        ranks: number of ranks.
    """
    return max(1, min(math.ceil(recipe / ranks), images // ranks))


def largest_useful(share: int, images: int, ranks: int) -> int:
    """Return the largest batch of one rank to try.

    Args:
        share: images of the recipe on one rank.
        images: images in the data set.
        ranks: number of ranks.
    """
    by_steps = images // (LEAST_STEPS * ranks)
    return max(share, min(MOST_TIMES_RECIPE * share, by_steps))


def plan_batch(fits: int, share: int) -> BatchPlan:
    """Divide the images of a step into batches that fit.

    A batch that is not smaller than the recipe's needs no accumulation. Otherwise the images of the recipe
    are divided into equal batches; if that needs much smaller ones, the last images are rounded up.

    Example:
        >>> plan_batch(7, 16)
        BatchPlan(per_rank=4, accumulation=4)

    Args:
        fits: largest batch of one rank.
        share: images of the recipe on one rank.
    """
    if fits >= share:
        return BatchPlan(fits, 1)
    for accumulation in range(2, share + 1):
        per_rank, rest = divmod(share, accumulation)
        if not rest and fits / 2 <= per_rank <= fits:
            return BatchPlan(per_rank, accumulation)
    accumulation = math.ceil(share / fits)
    return BatchPlan(math.ceil(share / accumulation), accumulation)


def largest_that_fits(
    peak: Callable[[int], int], budget: float, most: int
) -> int:
    """Return the largest batch whose peak memory is within a budget, by doubling and then by bisection.

    Args:
        peak: returns the peak memory in bytes of a number of images, or raises an error of lacking memory.
        budget: bytes that may be used.
        most: largest batch to try.

    Raises:
        ResourceError: if not even one image fits.
    """

    def fits(images: int) -> bool:
        try:
            return peak(images) <= budget
        except (torch.OutOfMemoryError, MemoryError):
            return False

    if not fits(1):
        raise _too_small(budget)
    good, bad = 1, most + 1
    while bad - good > 1:
        doubled = 2 * good
        images = doubled if bad > most and doubled < bad else (good + bad) // 2
        if fits(images):
            good = images
        else:
            bad = images
    return good


def estimate_on_cpu(
    peak: Callable[[int], int],
    budget: float,
    most: int,
    share: int,
    waiting: float,
) -> int:
    """Return the largest batch that fits, from a line through two measured peaks.

    Nothing near the limit is tried: a system that runs out of memory ends programs instead of reporting it.

    Args:
        peak: returns the peak memory in bytes of a number of images.
        budget: bytes that may be used.
        most: largest batch that is useful.
        share: images of the recipe, which are used if the peaks cannot be measured.
        waiting: bytes in the loader for each image of a batch.

    Raises:
        ResourceError: if not even one image fits.
    """
    if not reset_peak_memory():
        logger.warning(
            "the peak memory of this process cannot be measured, so the batch of the recipe is used"
        )
        return share
    one = peak(1)
    if one > budget:
        raise _too_small(budget)
    images, high = 1, one
    per_image = float(max(0, one - resident_memory()))  # an upper bound
    while images < most and high < (1 + MEASURABLE) * one:
        more = min(2 * images, most)
        if high + (more - images) * per_image > budget:
            break
        reset_peak_memory()
        high = peak(more)
        images = more
        per_image = max(0, high - one) / (images - 1)
    per_image += waiting
    if per_image <= 0:
        return most
    return max(1, min(most, int(1 + (budget - one - waiting) / per_image)))


def gpu_budget(device: torch.device) -> float:
    """Return the bytes of a GPU that the largest step may use, besides other programs."""
    gc.collect()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return USABLE_ON_GPU * (free + torch.cuda.memory_reserved(device))


def cpu_budget() -> float:
    """Return the bytes that this process may use at its peak, including what it uses now."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = available_memory() / processes
    return resident_memory() + USABLE_ON_CPU * free


def _too_small(budget: float) -> ResourceError:
    return ResourceError(
        f"not even one image fits into the memory of {budget / 1e9:.1f} GB that can be used; {ADVICE}"
    )


def _waiting_bytes(cfg: YAMLConfig, size_hw: tuple[int, int]) -> float:
    """Return the bytes of prepared images that wait in the loader, for each image of a batch."""
    loader = cfg.yaml_cfg.get(LOADER) or {}
    workers = int(loader.get("num_workers") or 0)
    batches = workers * int(loader.get("prefetch_factor") or 2)
    height, width = size_hw
    return 4.0 * 3 * height * width * batches


def _apply(
    cfg: YAMLConfig,
    loader: DetectionLoader,
    plan: BatchPlan,
    recipe: int,
    ranks: int,
) -> None:
    """Store the plan in the configuration, from which a resumed run takes it, and in the loader."""
    reason = "total_batch_size: auto"
    sizes = {"batch_size": None, "total_batch_size": plan.per_rank * ranks}
    cfg.set(LOADER, sizes, reason)
    cfg.set("grad_accum_steps", plan.accumulation, reason)
    has_base = cfg.settings.lr_base_batch_size is not None
    follow = not has_base and not _has_rates_of_its_own(cfg)
    if plan.effective(ranks) != recipe and follow:
        cfg.set("lr_base_batch_size", recipe, reason)
        cfg.set("lr_scaling", "sqrt", reason)
    loader.batch_sampler.batch_size = plan.per_rank


def _has_rates_of_its_own(cfg: YAMLConfig) -> bool:
    """Return whether the schedule does not use the rates of the optimizer: they cannot follow the batch."""
    return (cfg.yaml_cfg.get("lr_scheduler") or {}).get("type") == "OneCycleLR"


def _limit_evaluation(
    cfg: YAMLConfig, loader: DetectionLoader, fits: int, ranks: int
) -> None:
    """Reduce the batch of the evaluation to what fits in training; results do not depend on it."""
    if loader.batch_sampler.batch_size <= fits:
        return
    loader.batch_sampler.batch_size = fits
    sizes = {"batch_size": None, "total_batch_size": fits * ranks}
    cfg.set("val_dataloader", sizes, "total_batch_size: auto")


def _log(
    cfg: YAMLConfig,
    plan: BatchPlan,
    found: list[int],
    most: int,
    recipe: int,
    ranks: int,
) -> None:
    fits = min(found)
    why = "the largest that fits"
    if fits >= most:
        why = "it fits, and larger ones are not used without a number"
    by_rank = f" (by rank: {', '.join(map(str, found))})" if ranks > 1 else ""
    logger.info(
        "total_batch_size: auto chose %s per rank, %s%s: total_batch_size=%d grad_accum_steps=%d, "
        "%s in a step, the recipe has %d",
        counted(fits, "image"),
        why,
        by_rank,
        plan.per_rank * ranks,
        plan.accumulation,
        counted(plan.effective(ranks), "image"),
        recipe,
    )


def _largest_step(
    cfg: YAMLConfig, loader: DetectionLoader
) -> tuple[tuple[int, int], int, int]:
    """Return (height, width), objects of an image and number of classes of the largest step."""
    size = loader.dataset.output_size or cfg.yaml_cfg.get("eval_spatial_size")
    if not size:
        raise ConfigError(
            "train_dataloader.total_batch_size is 'auto', but the size of the images is not known; set "
            "eval_spatial_size, or the batch size to a number"
        )
    size_hw = (int(size[0]), int(size[1]))
    if isinstance(loader.collate_fn, MultiScaleCollate):
        size_hw = loader.collate_fn.largest_size(size_hw)
    objects = int(loader.dataset.boxes_per_image().max())
    classes = cfg.yaml_cfg.get("num_classes") or loader.dataset.num_classes
    return size_hw, objects, int(classes)
