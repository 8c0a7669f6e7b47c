"""What a run reports: a summary at its start, steps, epochs and pictures. Everything is given as values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import DetectionData, Target
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import is_main
from ..runtime.files import write_atomically
from ..runtime.log import logger
from ..runtime.own_files import YAML_HEADER
from .earlier_runs import CONFIG
from .epoch_meter import EpochMeter
from .model_selection import BestModel
from .pictures import has_pictures, training_grid, validation_grid
from .plan import Progress, TrainingPlan
from .run_state import plain
from .writers import (
    UNDEFINED,
    ConsoleWriter,
    JsonLinesWriter,
    PictureFolder,
    WandbWriter,
    Writer,
    open_tensorboard,
)

LONG_HORIZON = 0.2
"""An EMA whose horizon is above this fraction of a run is warned about."""

SHORT_RUN = 250
"""Steps of a run up to which it is not."""

MOSTLY_LOST = 0.5
"""An epoch whose augmentation drops more than this fraction of the boxes is warned about."""


class RunLog:
    """Writes the history of a run to the terminal, `log.txt`, TensorBoard and wandb. On ranks other than 0 it does nothing."""

    def __init__(self, writers: Sequence[Writer], plan: TrainingPlan, *, pictures: bool = True) -> None:
        """Store.

        Args:
            writers: none on ranks other than 0.
            plan: of the run.
            pictures: whether images are shown in some epochs.
        """
        self.writers = list(writers)
        self.plan = plan
        self.pictures = pictures

    def step(self, total_steps: int, losses: Mapping[str, float], rates: Sequence[float]) -> None:
        """Write the curves of a step.

        Args:
            total_steps: steps of the run that are done.
            losses: by name.
            rates: learning rate of each group.
        """
        values = {f"Loss/{name}": value for name, value in losses.items()}
        values["Loss/total"] = sum(losses.values())
        values |= {f"Lr/pg_{index}": rate for index, rate in enumerate(rates)}
        for writer in self.writers:
            writer.write_step(total_steps, values)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the record of an epoch (`epoch_record`)."""
        for writer in self.writers:
            writer.write_epoch(record["epoch"], record)

    def show_training(
        self, epoch: int, images: Tensor, targets: list[Target], names: Mapping[int, str]
    ) -> None:
        """Show images of a batch as the model gets them, with their boxes, in some epochs."""
        if self._shows(epoch):
            self._write_picture(epoch, "training", training_grid(images, targets, names))

    def show_validation(
        self,
        epoch: int,
        dataset: DetectionData,
        detections: Mapping[int, Any] | None,
        threshold: float | None,
    ) -> None:
        """Show what is found in the same few validation images, in some epochs; an evaluator may keep no detections."""
        if detections and self._shows(epoch):
            picture = validation_grid(dataset, detections, threshold)
            if picture is not None:
                self._write_picture(epoch, "validation", picture)

    def close(self) -> None:
        """Finish all files."""
        for writer in self.writers:
            writer.close()

    def _shows(self, epoch: int) -> bool:
        return self.pictures and bool(self.writers) and has_pictures(epoch, self.plan.epochs)

    def _write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        for writer in self.writers:
            writer.write_picture(epoch, name, picture)


def open_run_log(cfg: YAMLConfig, plan: TrainingPlan, first_epoch: int, config_text: str) -> RunLog:
    """Write `config.yml` and open all writers of a run; on ranks other than 0, none.

    Args:
        cfg: of the run, with its lengths resolved.
        plan: of the run.
        first_epoch: the one that comes next; lines of `log.txt` from it on are dropped.
        config_text: the configuration as YAML, with lengths as they were written.
    """
    if not is_main():
        return RunLog([], plan)
    settings = cfg.settings
    folder = Path(settings.output_dir)
    content = (YAML_HEADER + cfg.describe_lengths() + config_text).encode()
    write_atomically(folder / CONFIG, lambda file: file.write(content))
    writers: list[Writer] = [ConsoleWriter(), JsonLinesWriter(folder, first_epoch), PictureFolder(folder)]
    board = open_tensorboard(Path(settings.summary_dir or folder / "summary"), config_text)
    if board is not None:
        writers.append(board)
    if settings.use_wandb:
        writers.append(WandbWriter(settings.project_name, settings.exp_name, cfg.yaml_cfg, folder))
    return RunLog(writers, plan, pictures=settings.pictures)


def log_plan(plan: TrainingPlan, horizon: float | None) -> None:
    """Log what the epochs of a run will be, and warn about what it does not reach.

    Args:
        plan: of the run.
        horizon: of its EMA in steps; None without one.
    """
    for name, steps in _horizons(plan, horizon):
        logger.info("%s: %s of %s steps", name, f"{steps:,.0f}", f"{plan.steps:,}")
        text = horizon_warning(steps, plan.steps)
        if text:
            logger.warning("%s", text)
    stop = plan.stop_epoch
    if stop is not None and stop >= plan.epochs:
        advice = (
            "train_dataloader.collate_fn.stop_epoch=0.9 begins it after nine tenths of the run"
            if plan.epochs > 1
            else "a single epoch has room for one stage"
        )
        logger.warning(
            "there will be no clean stage: it would begin with epoch %d of %d; %s",
            stop + 1,
            plan.epochs,
            advice,
        )
    if plan.unreached_thaws:
        logger.warning(
            "what thaws with epoch %d of %d stays frozen in this run; DINOv3Backbone.freeze_backbone_epochs=0.125 thaws it after an eighth, "
            "0 from the start",
            plan.unreached_thaws[0] + 1,
            plan.epochs,
        )


def _horizons(plan: TrainingPlan, horizon: float | None) -> Iterator[tuple[str, float]]:
    """Yield the horizon of the EMA and, if its restart sets another decay, that of stage 2."""
    if horizon is None:
        return
    yield "EMA horizon", horizon
    restart = plan.ema_restart_decay
    if restart is None or plan.stop_epoch is None or not 0 < plan.stop_epoch < plan.epochs:
        return
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


def log_data(
    train_data: DetectionData,
    val_data: DetectionData,
    num_classes: int,
    plan: TrainingPlan,
    queries: int | None,
) -> None:
    """Log what a run learns from, and warn if images have more objects than the model can find.

    Args:
        train_data: for training.
        val_data: for evaluation.
        num_classes: C.
        plan: of the run.
        queries: objects that can be found in one image; None if not known.
    """
    boxes = train_data.boxes_per_image()
    most = int(boxes.max())
    accumulated = f" ({plan.window} x {plan.batch_size // plan.window})" if plan.window > 1 else ""
    logger.info(
        "%d training images (%d without objects, learned as negatives), %d for evaluation, %d classes, batch %d%s, %d steps an epoch, %d epochs",
        len(train_data),
        int((boxes == 0).sum()),
        len(val_data),
        num_classes,
        plan.batch_size,
        accumulated,
        plan.steps_per_epoch,
        plan.epochs,
    )
    if queries is not None and most > queries:
        logger.warning(
            "there is an image with %d objects, but only %d can be found in one (num_queries)",
            most,
            queries,
        )


def epoch_record(
    *,
    epoch: int,
    next_epoch: int,
    plan: TrainingPlan,
    meter: EpochMeter,
    losses: Mapping[str, float],
    metrics: Mapping[str, Any],
    best: BestModel,
    highest_rate: float,
    peak_memory_mb: float,
    model: torch.nn.Module,
) -> dict[str, Any]:
    """Return all about an epoch that has ended, as `log.txt` holds it.

    Args:
        epoch: from 0.
        next_epoch: the one that follows; early stopping may leave some out.
        plan: of the run.
        meter: of its steps.
        losses: means over its steps and all ranks; the sum as `loss`.
        metrics: of its evaluation.
        best: the best evaluation so far.
        highest_rate: largest learning rate of the last step.
        peak_memory_mb: of the device, in MB; 0 on a CPU.
        model: whose parameters are counted.
    """
    seconds = meter.seconds
    coco = [
        UNDEFINED if value is None else value
        for name, value in metrics.items()
        if name.startswith(("AP", "AR")) and not isinstance(value, dict)
    ]
    return {
        "epoch": epoch,
        "epochs": plan.epochs,
        "stage": plan.stage(epoch),
        "train_lr": highest_rate,
        "train_loss": losses.get("loss", float("nan")),
        **{f"train_{name}": value for name, value in losses.items() if name != "loss"},
        "test_coco_eval_bbox": coco,
        **plain(metrics),
        "best_metric": best.metric,
        "best_score": best.score,
        "best_epoch": best.epoch,
        "images_per_second": meter.images / max(seconds, 1e-9),
        "data_wait": meter.waited / max(seconds, 1e-9),
        "peak_memory_mb": peak_memory_mb,
        "seconds": seconds,
        "seconds_left": seconds * (plan.epochs - next_epoch),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def boxes_record(epoch: int, read: int, lost: Mapping[str, int]) -> dict[str, Any]:
    """Return how many boxes an epoch has read and lost, for `log.txt`; warn if most did not reach the loss."""
    total = sum(lost.values())
    if total > MOSTLY_LOST * read:
        by_count = sorted(lost.items(), key=lambda item: -item[1])
        logger.warning(
            "epoch %d: of %d boxes that were read %d did not reach the loss: %s",
            epoch + 1,
            read,
            total,
            ", ".join(f"{name} dropped {count}" for name, count in by_count),
        )
    return {"boxes_read": read, "boxes_lost": dict(lost)}


def log_step(progress: Progress, plan: TrainingPlan, loss: float, rate: float, meter: EpochMeter) -> None:
    """Log a line for a step, where no progress bar is seen."""
    left = meter.seconds / meter.steps * (plan.steps_per_epoch - progress.step)
    logger.info(
        "epoch %d [%d/%d] loss %.3f  lr %.2e  %.0f s left in it",
        progress.epoch + 1,
        progress.step,
        plan.steps_per_epoch,
        loss,
        rate,
        left,
    )
