"""Log a run: a summary at its start, steps, epochs and pictures. All functions take plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import Target
from ..core.counts import counted
from ..core.detection_data import DetectionData
from ..core.errors import first_line
from ..core.yaml_config import YAMLConfig
from ..runtime.distributed import is_main
from ..runtime.files import write_atomically
from ..runtime.log import logger
from ..runtime.own_files import YAML_HEADER
from .callbacks import Callbacks
from .curve_names import step_scalars
from .earlier_runs import CONFIG
from .epoch_meter import EpochMeter
from .loggers.choice import SERVICES, chosen_loggers, run_name
from .loggers.service_writer import ServiceWriter
from .model_selection import BestModel
from .pace import Pace
from .pictures import has_pictures, training_grid, validation_grid
from .plan import Progress, TrainingPlan
from .run_result import RunResult, result_of_log
from .run_state import plain
from .teacher_clock import speed_without_teacher
from .writers import (
    LOG_FILE,
    PICTURES,
    TABLE_FILE,
    UNDEFINED,
    ConsoleWriter,
    GuardedWriter,
    JsonLinesWriter,
    PictureFolder,
    TableWriter,
    Writer,
    format_seconds,
    open_tensorboard,
)

LONG_HORIZON = 0.2
"""Warn about an EMA whose horizon is longer than this fraction of the run."""

SHORT_RUN = 250
"""Do not warn about the horizon in runs of at most this many steps."""

MOSTLY_LOST = 0.5
"""Warn about an epoch in which augmentation drops more than this fraction of the boxes."""


class RunLog:
    """Write the history of a run to the terminal, files, TensorBoard and services; only rank 0 writes."""

    def __init__(
        self,
        writers: Sequence[Writer],
        plan: TrainingPlan,
        *,
        pictures: bool = True,
        callbacks: Callbacks | None = None,
    ) -> None:
        """Store the arguments.

        Args:
            writers: destinations; empty on ranks other than 0.
            plan: plan of the run.
            pictures: whether pictures are drawn in some epochs.
            callbacks: callbacks of the user; None calls nothing.
        """
        self.writers = list(writers)
        self.plan = plan
        self.pictures = pictures
        self.callbacks = callbacks or Callbacks()
        self.pace = Pace(at_once=True)
        """Pace of step lines where no progress bar is shown; the first step has one."""

    def step(
        self,
        total_steps: int,
        losses: Mapping[str, float],
        rates: Mapping[str, float],
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """Write the curves of a step.

        Args:
            total_steps: completed steps of the run.
            losses: loss terms by name.
            rates: learning rate of each parameter group, by `curve_names.group_names`.
            weights: factors of loss terms that change during the run, by name of the term.
        """
        values = step_scalars(losses, rates, weights or {})
        for writer in self.writers:
            writer.write_step(total_steps, values)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Write the record of an epoch (`epoch_record`)."""
        for writer in self.writers:
            writer.write_epoch(record["epoch"], record)

    def show_training(
        self,
        epoch: int,
        images: Tensor,
        targets: list[Target],
        names: Mapping[int, str],
    ) -> None:
        """Draw the images of a training batch with their boxes, in some epochs."""
        if self._shows(epoch):
            picture = training_grid(images, targets, names)
            self._write_picture(epoch, "training", picture)

    def show_validation(
        self,
        epoch: int,
        dataset: DetectionData,
        detections: Mapping[int, Any] | None,
        threshold: float | None,
    ) -> None:
        """Draw the detections in a few fixed validation images, in some epochs."""
        if detections and self._shows(epoch):
            picture = validation_grid(dataset, detections, threshold)
            if picture is not None:
                self._write_picture(epoch, "validation", picture)

    def result(self, result: RunResult) -> None:
        """Write the result of a complete run."""
        for writer in self.writers:
            writer.write_result(result)

    def close(self) -> None:
        """Close all writers. All services together have the time of one to take their last values."""
        for writer in self.writers:
            if isinstance(writer, ServiceWriter):
                writer.begin_to_close()
        for writer in self.writers:
            writer.close()

    def _shows(self, epoch: int) -> bool:
        can_write = self.pictures and bool(self.writers)
        return can_write and has_pictures(epoch, self.plan.epochs)

    def _write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        for writer in self.writers:
            writer.write_picture(epoch, name, picture)


def open_run_log(
    cfg: YAMLConfig,
    plan: TrainingPlan,
    first_epoch: int,
    config_text: str,
    callbacks: Callbacks | None = None,
) -> RunLog:
    """Write `config.yml` and open all writers of a run; ranks other than 0 get no writers.

    Args:
        cfg: configuration of the run, with resolved lengths.
        plan: plan of the run.
        first_epoch: next epoch; lines of `log.txt` from this epoch on are removed.
        config_text: configuration as YAML, with lengths as the user wrote them.
        callbacks: callbacks of the user, which only the main rank calls.
    """
    if not is_main():
        return RunLog([], plan)
    settings = cfg.settings
    folder = Path(settings.output_dir)
    content = (YAML_HEADER + cfg.describe_lengths() + config_text).encode()
    write_atomically(folder / CONFIG, lambda file: file.write(content))
    writers: list[Writer] = [
        ConsoleWriter(),
        JsonLinesWriter(folder, first_epoch),
        GuardedWriter(PictureFolder(folder), PICTURES),
    ]
    for word in chosen_loggers(settings):
        writer = _open_logger(word, cfg, first_epoch, config_text)
        if writer is not None:
            writers.append(writer)
    return RunLog(
        writers, plan, pictures=settings.pictures, callbacks=callbacks
    )


def _open_logger(
    word: str, cfg: YAMLConfig, first_epoch: int, config_text: str
) -> Writer | None:
    """Open the logger that a word stands for; None, with a warning, if it cannot be opened."""
    settings = cfg.settings
    folder = Path(settings.output_dir)
    try:
        if word == "csv":
            table = TableWriter(folder, first_epoch, settings.best_metric)
            return GuardedWriter(table, TABLE_FILE)
        if word == "tensorboard":
            summary_dir = Path(settings.summary_dir or folder / "summary")
            board = open_tensorboard(summary_dir, config_text)
            return board and GuardedWriter(board, "TensorBoard's log")
        return ServiceWriter(
            word,
            project=settings.project_name,
            name=run_name(settings),
            config=cfg.yaml_cfg,
            folder=folder,
        )
    except Exception as error:  # also of packages that do not fit together
        logger.warning(
            "the logger %s cannot be opened: %s. The training is not affected; log.txt has all values of "
            "epochs",
            SERVICES.get(word, word),
            first_line(error),
        )
        return None


def log_result(log: RunLog, folder: Path, report: Path | None) -> None:
    """Write the result of a complete run to its writers."""
    if log.writers:
        log.result(result_of_log(folder / LOG_FILE, report))


def log_plan(plan: TrainingPlan, horizon: float | None) -> None:
    """Log the EMA horizon, and warn about stages and phases that the run does not reach.

    Args:
        plan: plan of the run.
        horizon: horizon of the EMA in steps; None if there is no EMA.
    """
    for name, steps in _horizons(plan, horizon):
        logger.info(
            "%s: %s of %s steps", name, f"{steps:,.0f}", f"{plan.steps:,}"
        )
        text = horizon_warning(steps, plan.steps)
        if text:
            logger.warning("%s", text)
    stop = plan.stop_epoch
    if stop is not None and stop >= plan.epochs:
        advice = "a run of one epoch has only one stage"
        if plan.epochs > 1:
            advice = "set train_dataloader.collate_fn.stop_epoch=0.9"
        logger.warning(
            "stage 2 never starts: stop_epoch is %d but the run has %s; %s",
            stop,
            counted(plan.epochs, "epoch"),
            advice,
        )
    if plan.unreached_thaws:
        logger.warning(
            "parameters that are unfrozen in epoch %d stay frozen: the run has %s; let the phase begin "
            "earlier (DINOv3Backbone.freeze_backbone_epochs or unfreeze_plan), for example after a fraction "
            "of the run, 0.125",
            plan.unreached_thaws[0] + 1,
            counted(plan.epochs, "epoch"),
        )


def _horizons(
    plan: TrainingPlan, horizon: float | None
) -> Iterator[tuple[str, float]]:
    """Yield the horizon of the EMA and, if stage 2 has another decay, its horizon there."""
    if horizon is None:
        return
    yield "EMA horizon", horizon
    restart = plan.ema_restart_decay
    stop = plan.stop_epoch
    if restart is None or stop is None or not 0 < stop < plan.epochs:
        return
    restarted = 1 / (1 - restart) if restart < 1 else math.inf
    if not math.isclose(restarted, horizon, rel_tol=1e-6):
        yield "EMA horizon from stage 2 on", restarted


def horizon_warning(horizon: float, steps: int) -> str | None:
    """Return a warning if an EMA horizon is too long for a run of `steps` steps, else None."""
    if steps <= SHORT_RUN or horizon <= LONG_HORIZON * steps:
        return None
    return (
        f"the EMA's horizon of {horizon:,.0f} steps is more than a fifth of this run's {steps:,}: the "
        "weights that are evaluated and saved may be those of an early part of the run; ema.decay=~ "
        "ema.warmups=~ train_dataloader.collate_fn.ema_restart_decay=~ make it follow the length of the run"
    )


def log_data(
    train_data: DetectionData,
    val_data: DetectionData,
    num_classes: int,
    plan: TrainingPlan,
    queries: int | None,
) -> None:
    """Log the size of the data, and warn if images have more objects than the model can detect.

    Args:
        train_data: training data.
        val_data: validation data.
        num_classes: C.
        plan: plan of the run.
        queries: maximum number of detections in one image; None if unknown.
    """
    boxes = train_data.boxes_per_image()
    most = int(boxes.max())
    accumulated = ""
    if plan.window > 1:
        accumulated = f" ({plan.window} x {plan.batch_size // plan.window})"
    logger.info(
        "%s (%d without objects, used as negatives), %d for evaluation, %s, batch "
        "%d%s, %s per epoch, %s",
        counted(len(train_data), "training image"),
        int((boxes == 0).sum()),
        len(val_data),
        counted(num_classes, "class", "classes"),
        plan.batch_size,
        accumulated,
        counted(plan.steps_per_epoch, "step"),
        counted(plan.epochs, "epoch"),
    )
    if queries is not None and most > queries:
        logger.warning(
            "an image has %d objects, but at most %d can be detected in one image (num_queries)",
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
    rates: Mapping[str, float],
    class_names: Mapping[int, str],
    peak_memory_mb: float,
    model: torch.nn.Module,
) -> dict[str, Any]:
    """Return the record of a completed epoch, as written to `log.txt`.

    Args:
        epoch: epoch from 0.
        next_epoch: epoch that follows; early stopping may skip some.
        plan: plan of the run.
        meter: meter of the epoch.
        losses: means over the steps of the epoch and all ranks, with their sum as `loss`.
        metrics: results of the epoch's evaluation.
        best: best evaluation so far.
        highest_rate: largest learning rate of the last step.
        rates: learning rate of each parameter group in the last step, by `curve_names.group_names`.
        class_names: class names by the ids in `AP_of_class`.
        peak_memory_mb: peak memory of the device in MB; 0 on a CPU.
        model: model whose parameters are counted.
    """
    seconds = meter.seconds
    coco = []
    for name, value in metrics.items():
        if name.startswith(("AP", "AR")) and not isinstance(value, dict):
            coco.append(UNDEFINED if value is None else value)
    train_losses = {f"train_{name}": value for name, value in losses.items()}
    train_losses.setdefault("train_loss", float("nan"))
    parameters = list(model.parameters())
    trainable = [
        parameter for parameter in parameters if parameter.requires_grad
    ]
    return {
        "epoch": epoch,
        "epochs": plan.epochs,
        "stage": plan.stage(epoch),
        "train_lr": highest_rate,
        "train_loss": train_losses["train_loss"],
        **train_losses,
        "test_coco_eval_bbox": coco,
        **plain(metrics),
        "AP_by_class_name": by_class_name(
            metrics.get("AP_of_class") or {}, class_names
        ),
        "learning_rates": dict(rates),
        "best_metric": best.metric,
        "best_score": best.score,
        "best_epoch": best.epoch,
        "images_per_second": meter.images / max(seconds, 1e-9),
        "data_wait": meter.waited / max(seconds, 1e-9),
        "peak_memory_mb": peak_memory_mb,
        "seconds": seconds,
        "seconds_left": seconds * (plan.epochs - next_epoch),
        "n_parameters": sum(parameter.numel() for parameter in parameters),
        "n_trainable": sum(parameter.numel() for parameter in trainable),
    }


def by_class_name(
    values: Mapping[int, Any], names: Mapping[int, str]
) -> dict[str, Any]:
    """Return values by class name; the id is added to a name that several classes have.

    Example:
        >>> by_class_name({1: 0.5, 2: 0.25, 3: 0.0}, {1: "cat", 2: "dog", 3: "dog"})
        {'cat': 0.5, 'dog': 0.25, 'dog (3)': 0.0}

    Args:
        values: values by class id.
        names: class names by class id.
    """
    named: dict[str, Any] = {}
    for number, value in values.items():
        name = names.get(number, str(number))
        if name in named:
            name = f"{name} ({number})"
        named[name] = value
    return named


def boxes_record(
    epoch: int, read: int, lost: Mapping[str, int]
) -> dict[str, Any]:
    """Return the boxes read and lost in an epoch, for `log.txt`; warn if most did not reach the loss."""
    total = sum(lost.values())
    if total > MOSTLY_LOST * read:
        by_count = sorted(lost.items(), key=lambda item: -item[1])
        dropped = ", ".join(
            f"{name} dropped {count}" for name, count in by_count
        )
        logger.warning(
            "epoch %d: %d of %d boxes did not reach the loss: %s",
            epoch + 1,
            total,
            read,
            dropped,
        )
    return {"boxes_read": read, "boxes_lost": dict(lost)}


def log_step(
    progress: Progress,
    plan: TrainingPlan,
    loss: float,
    rate: float,
    meter: EpochMeter,
    memory: float,
    teacher_seconds: float | None = None,
) -> None:
    """Log a line for a step, where no progress bar is shown.

    Args:
        progress: steps that are done.
        plan: plan of the run.
        loss: sum of the loss terms.
        rate: largest learning rate.
        meter: meter of the epoch, with at least one step.
        memory: memory in use, in bytes: of the device, or of the process on a CPU.
        teacher_seconds: mean time of the teacher in a step; None without a teacher.
    """
    seconds = max(meter.seconds, 1e-9)
    done = progress.epoch * plan.steps_per_epoch + progress.step
    left = seconds / max(meter.steps, 1) * (plan.steps - done)
    logger.info(
        "epoch %d/%d  step %d/%d  loss %.3f  lr %.2e  %.1f images/s%s  left %s  memory %.1f GB",
        progress.epoch + 1,
        plan.epochs,
        progress.step,
        plan.steps_per_epoch,
        loss,
        rate,
        meter.images / seconds,
        _without_teacher(meter, teacher_seconds),
        format_seconds(left),
        memory / 1e9,
    )


def log_teacher(meter: EpochMeter, teacher_seconds: float | None) -> None:
    """Log the speed of the training steps of an epoch with a teacher.

    Args:
        meter: meter of the epoch, before its evaluation.
        teacher_seconds: mean time of the teacher in a step; None without a teacher logs nothing.
    """
    if teacher_seconds is None or not meter.steps:
        return
    seconds = max(meter.seconds, 1e-9)
    logger.info(
        "training at %.1f images/s%s: the teacher takes %.0f %% of the time",
        meter.images / seconds,
        _without_teacher(meter, teacher_seconds),
        100 * meter.steps * teacher_seconds / seconds,
    )


def _without_teacher(meter: EpochMeter, teacher_seconds: float | None) -> str:
    """Return the speed without the teacher in parentheses; "" without a teacher."""
    if teacher_seconds is None:
        return ""
    speed = speed_without_teacher(
        meter.images, meter.seconds, meter.steps, teacher_seconds
    )
    return f" ({speed:.1f} without the teacher)"
