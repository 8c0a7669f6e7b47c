"""Build all parts of a run, or raise: data, model, optimizer and, for a resumed run, its saved state."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.contracts import (
    ChecksEpochs,
    Compilable,
    LearnsDetections,
    Teaches,
)
from ..core.counts import counted
from ..core.durations import RunLength
from ..core.errors import CheckpointError, ConfigError
from ..core.yaml_config import RunSettings, YAMLConfig
from ..detection.fitting import describe_loading, load_strictly
from ..detection.model_config import other_family, refuse_other_family
from ..detection.weight_file import WeightFile
from ..runtime.distributed import (
    broadcast_object,
    broadcast_tensors,
    is_main,
    world_size,
)
from ..runtime.log import logger
from ..runtime.precision import autocast_dtype
from ..runtime.sync_batch_norm import synchronize_batch_norms
from .automatic_batch import choose_batch, is_automatic, keep_batch_of_run
from .checkpoint import BEST, CheckpointFolder
from .det_engine import seed_step
from .finetune import load_for_tuning
from .learning_rates import LearningRates, scale_to_batch
from .model_selection import BestModel
from .numerics import NumericsGuard
from .phases import Phases
from .plan import TrainingPlan, make_plan, steps_per_epoch
from .provenance import provenance
from .run_data import RunData, open_run_data
from .run_state import RunFacts, RunState
from .start_weights import Start, read_start
from .training_step import TrainStep


@dataclass(frozen=True)
class Run:
    """All parts of a training run."""

    settings: RunSettings
    device: torch.device
    checkpoints: CheckpointFolder
    data: RunData
    facts: RunFacts
    plan: TrainingPlan
    state: RunState
    step: TrainStep
    rates: LearningRates
    phases: Phases
    postprocessor: nn.Module
    model_size: tuple[int, ...]
    """`eval_spatial_size` as (height, width); empty if it is not set."""

    num_classes: int
    """C of the model; it may exceed the number of classes in the data."""

    @property
    def folder(self) -> Path:
        """Output folder."""
        return self.checkpoints.folder


def build_run(
    cfg: YAMLConfig,
    device: torch.device,
    checkpoints: CheckpointFolder,
    is_stop_asked: Callable[[], bool],
) -> Run:
    """Build a training run. Checks run in an order that finds a user's mistakes before expensive work starts.

    Args:
        cfg: configuration of the run.
        device: device of this rank.
        checkpoints: checkpoints in the output folder, which this run has locked.
        is_stop_asked: returns True once this rank was asked to stop.

    Raises:
        RunError: if configuration, data, weights or training state are invalid or do not fit together.
    """
    settings = cfg.settings
    start = read_start(settings, checkpoints)
    seed = choose_seed(settings, start)
    chooses_batch = is_automatic(cfg)
    if chooses_batch and start.state is not None:
        keep_batch_of_run(cfg, start.state["meta"]["config"])
        chooses_batch = False
    data = open_run_data(cfg, start, seed, checkpoints.folder)
    if chooses_batch:
        _choose_batch(cfg, data, seed, device)
    steps = steps_per_epoch(data.train_loader, settings.grad_accum_steps)
    cfg.resolve_lengths(RunLength(settings.epochs, steps))
    model, origin = build_model(cfg, start, data.classes, seed, device)
    cfg.criterion.to(device).train()
    thaws = {group.get("thaw_epoch", 0) for group in cfg.optimizer.param_groups}
    plan = make_plan(settings, data.train_loader, thaws)
    for module in model.modules():
        if isinstance(module, ChecksEpochs):
            module.check_epochs(plan.epochs)
    rates = _build_rates(cfg, cfg.optimizer, plan)
    facts = _gather_facts(cfg, data, seed, origin, plan)
    has_named_device = settings.device is not None
    amp_dtype = amp_dtype_of_run(
        settings.use_amp, device, named=has_named_device
    )
    guard = NumericsGuard(plan.steps_per_epoch, folder=checkpoints.folder)
    state = _build_state(cfg, model, guard, data, device, amp_dtype)
    step = build_step(
        cfg,
        model,
        guard,
        state.scaler,
        device,
        amp_dtype,
        is_stop_asked,
        [entry["name"] for entry in data.classes],
    )
    if start.state is not None:
        _resume(state, start, facts, plan, checkpoints, data)
    return Run(
        settings=settings,
        device=device,
        checkpoints=checkpoints,
        data=data,
        facts=facts,
        plan=plan,
        state=state,
        step=step,
        rates=rates,
        phases=Phases(
            step, find_unused_parameters=settings.find_unused_parameters
        ),
        postprocessor=cfg.postprocessor.eval(),
        model_size=tuple(cfg.yaml_cfg.get("eval_spatial_size") or ()),
        num_classes=int(cfg.yaml_cfg.get("num_classes") or len(data.classes)),
    )


def _choose_batch(
    cfg: YAMLConfig, data: RunData, seed: int, device: torch.device
) -> None:
    """Choose the batch size, with a copy of the model that has random weights."""

    def build_trial(copied: YAMLConfig) -> tuple[TrainStep, Phases]:
        model, _ = build_model(copied, Start(), data.classes, seed, device)
        amp_dtype = amp_dtype_of_run(
            copied.settings.use_amp,
            device,
            named=copied.settings.device is not None,
        )
        step = build_step(
            copied,
            model.train(),
            NumericsGuard(1),
            None,
            device,
            amp_dtype,
            class_names=[entry["name"] for entry in data.classes],
        )
        return step, Phases(step, find_unused_parameters=False)

    choose_batch(cfg, data.train_loader, data.val_loader, device, build_trial)


def compile_backbone(model: nn.Module) -> None:
    """Compile the backbone; the EMA, which is a copy made before, is not compiled.

    Raises:
        ConfigError: if the backbone has no part that can be compiled.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Compilable):
        raise ConfigError(
            f"compile is 'backbone', but {type(backbone).__name__} has no part that can be compiled; remove "
            "the setting, or use DINOv3Backbone"
        )
    backbone.compile_for_training()
    logger.info(
        "the blocks of the ViT are compiled at the first step (torch.compile), which takes up to a minute"
    )


def _build_state(
    cfg: YAMLConfig,
    model: nn.Module,
    guard: NumericsGuard,
    data: RunData,
    device: torch.device,
    amp_dtype: torch.dtype | None,
) -> RunState:
    scaler = cfg.scaler(device.type) if amp_dtype == torch.float16 else None
    return RunState(
        model=model,
        optimizer=cfg.optimizer,
        ema=cfg.ema,
        scaler=scaler,
        guard=guard,
        best=BestModel(cfg.settings.best_metric),
        distillation=cfg.distillation,
        train_data=data.train_loader.dataset,
    )


def build_step(
    cfg: YAMLConfig,
    model: nn.Module,
    guard: NumericsGuard,
    scaler: torch.amp.GradScaler | None,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    is_stop_asked: Callable[[], bool] = lambda: False,
    class_names: Sequence[str] | None = None,
) -> TrainStep:
    """Build the training step of a model, with the criterion, optimizer, EMA and further losses of its run.

    Args:
        cfg: configuration of the run, with lengths as integers.
        model: model of `build_model`.
        guard: counter of skipped steps.
        scaler: gradient scaler for fp16, or None.
        device: device of the model.
        amp_dtype: dtype for autocast, or None for float32.
        is_stop_asked: returns True once this rank was asked to stop.
        class_names: classes of the data in the order of their labels; None if they are not known.

    Raises:
        ConfigError: if a distillation does not fit the classes or the criterion.
    """
    anchoring = cfg.gram_anchoring
    if anchoring:
        anchoring.to(device).attach()
    distillation = cfg.distillation
    if distillation:
        distillation.to(device).attach()
        if isinstance(distillation, Teaches):
            prepare_teacher(distillation, cfg, class_names)
        # its start weights depend on the random state, which differs between ranks
        broadcast_tensors([p.data for p in distillation.parameters()])
    average = cfg.ema  # a copy of the model, so it is made before compiling
    if cfg.settings.compile:
        compile_backbone(model)
    return TrainStep(
        model=model,
        criterion=cfg.criterion.to(device).train(),
        optimizer=cfg.optimizer,
        ema=average,
        scaler=scaler,
        device=device,
        amp_dtype=amp_dtype,
        clip_max_norm=cfg.settings.clip_max_norm,
        guard=guard,
        exact=cfg.settings.grad_accum_exact,
        anchoring=anchoring,
        distillation=distillation,
        is_stop_asked=is_stop_asked,
    )


def prepare_teacher(
    distillation: Teaches, cfg: YAMLConfig, class_names: Sequence[str] | None
) -> None:
    """Match the classes of a teacher with those of the data, and check that the criterion can use them.

    Raises:
        ConfigError: if no class is shared, or the criterion cannot compare detections.
    """
    num_classes = cfg.yaml_cfg.get("num_classes") or len(class_names or ())
    distillation.match_classes(class_names, int(num_classes))
    criterion = cfg.criterion
    if distillation.needs_criterion and not isinstance(
        criterion, LearnsDetections
    ):
        raise ConfigError(
            f"the criterion {type(criterion).__name__} has no method taught_terms, which the decoder part of "
            "the distillation needs; use DFINECriterion, or set distillation.decoder_weight=~"
        )


def choose_seed(settings: RunSettings, start: Start) -> int:
    """Return the random seed of a run.

    A resumed run keeps its seed. A new run takes the one of `--seed`, or else a random one, which is logged.
    """
    if start.state is not None:
        return start.state["seed"]
    if settings.seed is not None:
        return settings.seed
    seed = broadcast_object(random.SystemRandom().randrange(1 << 31))
    logger.info("no --seed was given; this run uses --seed %d", seed)
    return seed


def build_model(
    cfg: YAMLConfig,
    start: Start,
    classes: list[dict[str, Any]],
    seed: int,
    device: torch.device,
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the detector with its start weights, which are identical on every rank.

    Args:
        cfg: configuration of the run, with the number of classes.
        start: files the run starts from. The weights of a resumed run are loaded later, with its training
            state.
        classes: classes of the data.
        seed: random seed of the run.
        device: device of this rank.

    Returns:
        The model on `device`, and the origin of its weights (`provenance.provenance`).

    Raises:
        CheckpointError: if the weights do not fit the model.
    """
    seed_step(seed, 0)
    file = start.file
    if file is not None:
        cfg.without_pretrained()
    model = cfg.model
    origin = provenance(model, file)
    if file is not None and start.state is None:
        _load_start_weights(cfg, model, start, file, classes)
    if cfg.settings.sync_bn and world_size() > 1 and device.type == "cuda":
        model = synchronize_batch_norms(model)
    model = model.to(device)
    # before the EMA copies the weights
    broadcast_tensors(list(model.state_dict().values()))
    return model, origin


def _load_start_weights(
    cfg: YAMLConfig,
    model: nn.Module,
    start: Start,
    file: WeightFile,
    classes: list[dict[str, Any]],
) -> None:
    """Load the weights of `-t`, or those of `-r` for an evaluation.

    A file of another family with the same tensors can be tuned, but not evaluated.
    """
    if start.tunes:
        load_for_tuning(model, file, [entry["name"] for entry in classes])
        difference = other_family(file, cfg)
        if difference is not None:
            logger.warning(
                "%s; training starts with this difference", difference
            )
    else:
        refuse_other_family(file, cfg)
        load_strictly(model, file)
    if file.config_text is None:
        logger.info("%s", describe_loading(file, model, cfg.path))
    elif not start.tunes:
        tensors = counted(len(file.weights), "tensor")
        logger.info("loaded %s from %s", tensors, file.path)


def amp_dtype_of_run(
    use_amp: bool, device: torch.device, *, named: bool
) -> torch.dtype | None:
    """Return the dtype for autocast, or None for float32.

    Args:
        use_amp: whether mixed precision is enabled.
        device: device of the model.
        named: whether the user chose the device; a CPU that is only the fallback computes in float32.
    """
    if not use_amp or (device.type == "cpu" and not named):
        return None
    return autocast_dtype(device)


def _build_rates(
    cfg: YAMLConfig, optimizer: torch.optim.Optimizer, plan: TrainingPlan
) -> LearningRates:
    base = cfg.settings.lr_base_batch_size
    if base:
        schedule = (cfg.yaml_cfg.get("lr_scheduler") or {}).get("type")
        rule = cfg.settings.lr_scaling
        scale_to_batch(optimizer, base, plan.batch_size, schedule, rule)
    if cfg.lr_scheduler is not None:
        # raises now if the schedule ends before the run
        cfg.lr_scheduler.rates(plan.epochs - 1)
    return LearningRates(
        optimizer,
        cfg.lr_scheduler,
        cfg.lr_warmup_scheduler,
        plan.steps_per_epoch,
    )


def _gather_facts(
    cfg: YAMLConfig,
    data: RunData,
    seed: int,
    origin: dict[str, Any],
    plan: TrainingPlan,
) -> RunFacts:
    size = data.val_loader.dataset.output_size or cfg.yaml_cfg.get(
        "eval_spatial_size"
    )
    return RunFacts(
        seed=seed,
        classes=data.classes,
        config_text=cfg.to_yaml(),
        provenance=origin,
        preprocessing=cfg.evaluation_transforms,
        bit_depth=getattr(data.val_loader.dataset, "bit_depth", None),
        input_size=tuple(size or ()),
        identity=data.identity,
        batch_size=plan.batch_size,
    )


def _resume(
    state: RunState,
    start: Start,
    facts: RunFacts,
    plan: TrainingPlan,
    checkpoints: CheckpointFolder,
    data: RunData,
) -> None:
    """Restore the state of a run, and handle changed data and missing best weights."""
    assert start.state is not None and start.path is not None
    state.load_state_dict(start.state, facts, start.path)
    if data.changed:
        state.restart_epoch()
        if is_main():
            checkpoints.set_best_aside()
    elif state.best.epoch is not None:
        found = None
        if is_main():
            found = checkpoints.has_best(state.best.epoch, start.path)
        if not broadcast_object(found):
            _continue_without_best(state, plan, checkpoints.folder, start.path)
    logger.info(
        "resumed from %s: epoch %d, step %d of it, best %s %s",
        start.path,
        state.progress.epoch + 1,
        state.progress.step,
        state.best.metric,
        state.best.score,
    )


def _continue_without_best(
    state: RunState, plan: TrainingPlan, folder: Path, last: Path
) -> None:
    """Reset the best score because its weights are missing; raise if the run is already complete."""
    best_epoch = state.best.epoch or 0
    missing = f"the best weights, of epoch {best_epoch + 1}, are not in"
    if plan.is_over(state.progress):
        raise CheckpointError(
            f"this run is complete, but {missing} {folder / BEST}; last.pth holds the weights of the last "
            f"epoch: evaluate them with --test-only -r {last}"
        )
    logger.warning(
        "%s %s: the next evaluation counts as the best", missing, folder / BEST
    )
    state.best.forget_score()
