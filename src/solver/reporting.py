"""What is said about a run at its start and after every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..runtime.distributed import world_size
from ..runtime.log import logger
from .det_engine import EpochMeter
from .writers import UNDEFINED

if TYPE_CHECKING:
    from .det_solver import DetSolver

LONG_HORIZON, SHORT_RUN = 0.2, 250
"""An EMA whose horizon is above this fraction of a run is warned about, unless the run has at most so many steps."""

MOSTLY_LOST = 0.5
"""An epoch whose augmentation drops more than this fraction of the boxes is warned about."""


def introduce(solver: DetSolver) -> None:
    """Say once what is about to happen, with numbers."""
    precision = str(solver.amp_dtype).removeprefix("torch.") if solver.amp_dtype else "float32"
    logger.info(
        "%s on %s, %d rank(s), %s", type(solver.model).__name__, solver.device, world_size(), precision
    )
    train, val = solver.train_loader.dataset, solver.val_loader.dataset
    boxes = train.boxes_per_image()
    empty, most_boxes = int((boxes == 0).sum()), int(boxes.max())
    accumulated = f" ({solver.window} x {solver.train_loader.total_batch_size})" if solver.window > 1 else ""
    logger.info(
        "%d training images (%d without objects, learned as negatives), %d for evaluation, %d classes, batch %d%s, %d steps an epoch, %d epochs",
        len(train),
        empty,
        len(val),
        len(solver.classes),
        solver.effective_batch_size,
        accumulated,
        solver.steps_per_epoch,
        solver.settings.epochs,
    )
    steps = solver.steps_per_epoch * solver.settings.epochs
    for name, horizon in _horizons(solver):
        logger.info("%s: %s of %s steps", name, f"{horizon:,.0f}", f"{steps:,}")
        if text := horizon_warning(horizon, steps):
            logger.warning("%s", text)
    queries = getattr(getattr(solver.model, "decoder", None), "num_queries", None)
    if queries is not None and most_boxes > queries:
        logger.warning(
            "there is an image with %d objects, but only %d can be found in one (num_queries)",
            most_boxes,
            queries,
        )
    stop = solver.stages.stop_epoch
    if stop is not None and stop >= solver.settings.epochs:
        advice = (
            "train_dataloader.collate_fn.stop_epoch=0.9 begins it after nine tenths of the run"
            if solver.settings.epochs > 1
            else "a single epoch has room for one stage"
        )
        logger.warning(
            "there will be no clean stage: it would begin with epoch %d of %d; %s",
            stop + 1,
            solver.settings.epochs,
            advice,
        )
    if late := [thaw for thaw in sorted(solver.thaws) if thaw >= solver.settings.epochs]:
        logger.warning(
            "what thaws with epoch %d of %d stays frozen in this run; DINOv3Backbone.freeze_backbone_epochs=0.125 thaws it after an eighth, "
            "0 from the start",
            late[0] + 1,
            solver.settings.epochs,
        )


def _horizons(solver: DetSolver) -> Iterator[tuple[str, float]]:
    """Yield the horizon of the run's EMA and, if its restart sets another decay, that of stage 2."""
    horizon, restart = getattr(solver.ema, "horizon", None), solver.stages.ema_restart_decay
    if horizon is None:  # no EMA, or one of a user's own
        return
    yield "EMA horizon", horizon
    stop = solver.stages.stop_epoch
    if restart is not None and stop is not None and 0 < stop < solver.settings.epochs:
        restarted = 1 / (1 - restart) if restart < 1 else math.inf
        if not math.isclose(restarted, horizon, rel_tol=1e-6):
            yield "EMA horizon from stage 2 on", restarted


def horizon_warning(horizon: float, steps: int) -> str | None:
    """Return a warning if the horizon of an EMA takes up too much of a run of `steps` steps, else None."""
    if steps <= SHORT_RUN or horizon <= LONG_HORIZON * steps:
        return None
    return (
        f"the EMA's horizon of {horizon:,.0f} steps is more than a fifth of this run's {steps:,}: the weights that are "
        f"evaluated and saved may be those of an early part of the run; ema.decay=~ ema.warmups=~ "
        f"train_dataloader.collate_fn.ema_restart_decay=~ make it follow the length of the run"
    )


def epoch_record(
    solver: DetSolver, epoch: int, meter: EpochMeter, means: dict[str, float], metrics: dict[str, Any]
) -> dict[str, Any]:
    """Return all about an epoch that has ended, as `log.txt` holds it.

    Args:
        solver: of the run.
        epoch: its number, from 0.
        meter: of its steps.
        means: of its losses over all ranks.
        metrics: of its evaluation.
    """
    memory = torch.cuda.max_memory_allocated(solver.device) / 1e6 if solver.device.type == "cuda" else 0.0
    return {
        "epoch": epoch,
        "epochs": solver.settings.epochs,
        "stage": solver.stages.stage(epoch),
        "train_lr": solver.rates.highest,
        "train_loss": means.get("loss", float("nan")),
        **{f"train_{name}": value for name, value in means.items() if name != "loss"},
        "test_coco_eval_bbox": [
            UNDEFINED if value is None else value
            for name, value in metrics.items()
            if name.startswith(("AP", "AR")) and not isinstance(value, dict)
        ],
        **plain(metrics),
        "best_metric": solver.best.metric,
        "best_score": solver.best.score,
        "best_epoch": solver.best.epoch,
        "images_per_second": meter.images / max(meter.seconds, 1e-9),
        "data_wait": meter.waited / max(meter.seconds, 1e-9),
        "peak_memory_mb": memory,
        "seconds": meter.seconds,
        "seconds_left": meter.seconds * (solver.settings.epochs - solver.progress.epoch),
        "n_parameters": sum(p.numel() for p in solver.model.parameters()),
        "n_trainable": sum(p.numel() for p in solver.model.parameters() if p.requires_grad),
    }


def boxes_record(epoch: int, read: int, lost: Mapping[str, int]) -> dict[str, Any]:
    """Return how many boxes an epoch has read and lost, for `log.txt`; warn if most did not reach the loss."""
    total = sum(lost.values())
    if total > MOSTLY_LOST * read:
        logger.warning(
            "epoch %d: of %d boxes that were read %d did not reach the loss: %s",
            epoch + 1,
            read,
            total,
            ", ".join(f"{name} dropped {count}" for name, count in sorted(lost.items(), key=lambda i: -i[1])),
        )
    return {"boxes_read": read, "boxes_lost": dict(lost)}


def plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics as JSON knows them."""
    return {
        key: {str(k): v for k, v in value.items()} if isinstance(value, dict) else value
        for key, value in metrics.items()
    }
