"""Parts of the training loop: summary, memory trial, and the start, steps, evaluation and end of an epoch."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from ..core.contracts import (
    Batch,
    HasHorizon,
    HasQueries,
    KeepsDetections,
    Teaches,
)
from ..core.counts import counted
from ..core.loader_contracts import FollowsEpochs, MultiScaleCollate
from ..detection.fitting import completed
from ..runtime.distributed import broadcast_tensors, is_main, world_size
from ..runtime.log import logger
from ..runtime.memory import resident_memory
from ..runtime.watchdog import Watchdog
from .building import Run
from .callbacks import EpochEvent, EvaluationEvent, StepEvent
from .curve_names import group_names
from .det_engine import evaluate, seed_step, windows, with_progress
from .epoch_meter import EpochMeter
from .memory_trial import try_memory
from .nothing_found import explain_nothing_found
from .numerics import ADVICE_FOR_A_RUN
from .phases import log_trainable_parameters
from .results_table import table_row
from .run_log import (
    RunLog,
    boxes_record,
    epoch_record,
    log_data,
    log_plan,
    log_step,
    log_teacher,
)
from .run_state import plain
from .saving import Saver


def log_run(run: Run) -> None:
    """Log a summary of the run before it starts."""
    model = run.state.model
    dtype = run.step.amp_dtype or torch.float32
    logger.info(
        "%s on %s, %s, %s",
        type(model).__name__,
        run.device,
        counted(world_size(), "rank"),
        str(dtype).removeprefix("torch."),
    )
    queries = None
    for part in model.modules():
        if isinstance(part, HasQueries):
            queries = part.num_queries
            break
    train_data = run.data.train_loader.dataset
    log_data(
        train_data,
        run.data.val_loader.dataset,
        len(run.data.classes),
        run.plan,
        queries,
    )
    average = run.state.ema
    log_plan(
        run.plan, average.horizon if isinstance(average, HasHorizon) else None
    )


def rehearse(run: Run) -> None:
    """Check before training whether the largest step fits into memory; on a CPU only with `memory_trial`."""
    wanted = run.settings.memory_trial
    if wanted is None:
        wanted = run.device.type == "cuda"
    loader = run.data.train_loader
    collate = loader.collate_fn
    size = loader.dataset.output_size or run.model_size
    if not wanted or not size or not isinstance(collate, MultiScaleCollate):
        return
    try_memory(
        run.step,
        run.phases,
        images=loader.batch_sampler.batch_size,
        size_hw=collate.largest_size((size[0], size[1])),
        objects=int(loader.dataset.boxes_per_image().max()),
        num_classes=run.num_classes,
        epoch=run.state.progress.epoch,
        last_epoch=run.plan.epochs - 1,
    )


def begin_epoch(run: Run, epoch: int) -> None:
    """Prepare an epoch; a run that resumes within the epoch skips what happens only at its first step."""
    progress = run.state.progress
    first_batch = progress.step * run.settings.grad_accum_steps
    run.data.train_loader.set_epoch(epoch, first_batch)
    for part in (run.step.criterion, run.step.anchoring):
        if isinstance(part, FollowsEpochs):
            part.set_epoch(epoch)
    run.step.teacher_clock.restart()
    if run.state.distillation:
        run.state.distillation.begin_epoch(
            final_stage=run.plan.stage(epoch) == 2,
            progress=run.plan.stage_one_progress(epoch),
        )
    if run.phases.begin(epoch):
        rates = run.rates.scheduled(progress)
        log_trainable_parameters(
            epoch, run.state.model, run.state.optimizer, rates
        )
    if progress.step:
        return
    run.state.guard.start_epoch()
    if run.plan.restarts_at(epoch) and run.state.best.stage_one_weights:
        load_best_weights(run)


def load_best_weights(run: Run) -> None:
    """Start stage 2 from the best weights of stage 1, of which every rank has a copy."""
    best = run.state.best
    # the input size may have changed, and with it the computed tables
    weights = completed(best.stage_one_weights, run.state.model)
    best.stage_one_weights = {}
    run.state.model.load_state_dict(weights)
    if run.state.ema is not None:
        run.state.ema.restart(weights, run.plan.ema_restart_decay)
    score = "not scored again yet"
    if best.epoch is not None and best.score is not None:
        score = f"epoch {best.epoch + 1}, {best.metric} {best.score:.3f}"
    logger.info(
        "stage 2 begins: no strong augmentation, from the best weights of stage 1 (%s)",
        score,
    )


def train_epoch(
    run: Run, log: RunLog, saver: Saver, watchdog: Watchdog
) -> EpochMeter:
    """Run the remaining steps of an epoch.

    Returns:
        The meter of the epoch, including steps before a resume.
    """
    state = run.state
    progress = state.progress
    state.model.train()
    meter = state.meter = state.meter or EpochMeter()
    names = {
        label: entry["name"] for label, entry in enumerate(run.data.classes)
    }
    batches = windows(run.data.train_loader, run.settings.grad_accum_steps)
    title = f"epoch {progress.epoch + 1}/{run.plan.epochs}"
    bar = with_progress(batches, title, run.plan.steps_per_epoch, progress.step)
    before = time.perf_counter()
    for window in bar:
        waited = time.perf_counter() - before
        if progress.step == 0:
            images, targets = window[0]
            log.show_training(progress.epoch, images, targets, names)
        losses = take_step(run, window, watchdog)
        meter.count_boxes(window)
        if losses is not None:
            images_of_rank = sum(len(images) for images, _ in window)
            meter.add(losses, images_of_rank * world_size(), waited)
            if is_main():
                report_step(run, log, losses, meter, bar)
                call_on_step(run, log, losses)
        if run.step.stopping:
            saver.save_and_stop()
        saver.save_if_due()
        before = time.perf_counter()
    watchdog.rest()
    log_teacher(meter, run.step.teacher_seconds())
    return meter


def take_step(
    run: Run, window: list[Batch], watchdog: Watchdog
) -> dict[str, Tensor] | None:
    """Run one step and count it; return its losses, or None if it was skipped."""
    progress = run.state.progress
    seed_step(run.facts.seed, 1 + progress.total_steps)
    run.rates.set(progress)
    watchdog.beat(progress.total_steps)
    losses = run.step(progress.total_steps, window)
    progress.step += 1
    progress.total_steps += 1
    return losses


def report_step(
    run: Run,
    log: RunLog,
    losses: dict[str, Tensor],
    meter: EpochMeter,
    bar: Any,
) -> None:
    """Write the curves of a step every `print_freq` steps, and update the progress bar.

    Without a progress bar, a line is logged instead, also when none was logged for some time. Other steps are
    not reported, because reading their losses synchronizes with the device.
    """
    progress = run.state.progress
    has_curves = progress.step % run.settings.print_freq == 0
    has_line = bar.disable and (has_curves or log.pace.is_due())
    if not (has_curves or has_line):
        return
    values = {name: value.item() for name, value in losses.items()}
    total = sum(values.values())
    if has_curves:
        weights = {}
        distillation = run.state.distillation
        if distillation:
            weights["loss_distill"] = distillation.weight
        if isinstance(distillation, Teaches):
            weights["loss_soft"] = distillation.decoder_weight
        log.step(progress.total_steps, values, group_rates(run), weights)
    bar.set_postfix(loss=f"{total:.2f}", lr=f"{run.rates.highest:.1e}")
    if has_line:
        log.pace.restart()
        memory = memory_in_use(run.device)
        log_step(
            progress,
            run.plan,
            total,
            run.rates.highest,
            meter,
            memory,
            run.step.teacher_seconds(),
        )


def call_on_step(run: Run, log: RunLog, losses: dict[str, Tensor]) -> None:
    """Call the user's `on_step`, which reads the losses if it needs them."""
    if not log.callbacks.has("on_step"):
        return
    progress = run.state.progress
    event = StepEvent(
        epoch=progress.epoch + 1,
        step=progress.step,
        steps_per_epoch=run.plan.steps_per_epoch,
        total_steps=progress.total_steps,
        learning_rate=run.rates.highest,
        tensors=losses,
    )
    log.callbacks.call("on_step", event)


def group_rates(run: Run) -> dict[str, float]:
    """Return the learning rate of each parameter group, by a readable name."""
    groups = run.state.optimizer.param_groups
    names = group_names(run.state.model, groups)
    return {name: group["lr"] for name, group in zip(names, groups)}


def evaluate_run(run: Run, saver: Saver) -> dict[str, Any]:
    """Evaluate the EMA, or the model without EMA, with the batch statistics of rank 0 on every rank."""
    scored = run.state.scored
    statistics = [
        buffer for buffer in scored.buffers() if buffer.is_floating_point()
    ]
    broadcast_tensors(statistics)
    return evaluate(
        scored,
        run.postprocessor,
        run.data.val_loader,
        run.data.evaluator,
        run.device,
        saver.stop_evaluation,
        run.folder,
        advice=ADVICE_FOR_A_RUN,
    )


def end_epoch(
    run: Run,
    log: RunLog,
    saver: Saver,
    epoch: int,
    meter: EpochMeter,
    metrics: dict[str, Any],
) -> None:
    """Log and save an epoch. The log comes first: a run that is killed in between repeats both."""
    state = run.state
    state.meter = None
    if is_main():
        evaluation = EvaluationEvent(epoch + 1, plain(metrics))
        log.callbacks.call("on_evaluation", evaluation)
    losses = meter.means()
    explain_nothing_found(
        state, losses.get("loss", 0.0), metrics, run.data.evaluator
    )
    evaluator = run.data.evaluator
    detections = None
    if isinstance(evaluator, KeepsDetections):
        detections = evaluator.detections
    val_data = run.data.val_loader.dataset
    log.show_validation(
        epoch, val_data, detections, metrics.get("F1_threshold")
    )
    improved = state.close_epoch(metrics, run.plan)
    run.data.train_loader.report_images()
    run.data.val_loader.report_images()
    boxes = meter.boxes_of_all_ranks()
    distillation = state.distillation.end_epoch() if state.distillation else {}
    if is_main():
        record = epoch_record(
            epoch=epoch,
            next_epoch=state.progress.epoch,
            plan=run.plan,
            meter=meter,
            losses=losses,
            metrics=metrics,
            best=state.best,
            highest_rate=run.rates.highest,
            rates=group_rates(run),
            class_names=val_data.detection_names,
            peak_memory_mb=peak_memory_mb(run.device),
            model=state.model,
        )
        record["steps"] = state.progress.total_steps
        record |= boxes_record(epoch, *boxes) | distillation
        log.epoch(record)
    saver.keep(epoch, metrics, improved=improved)
    if is_main() and log.callbacks.has("on_epoch"):
        ended = EpochEvent(
            epoch + 1, run.plan.epochs, table_row(record), is_best=improved
        )
        log.callbacks.call("on_epoch", ended)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of tensors on a device so far, in MB; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    return torch.cuda.max_memory_allocated(device) / 1e6


def memory_in_use(device: torch.device) -> float:
    """Return the peak memory of tensors on a device, or on a CPU the memory of this process, in bytes."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resident_memory())
