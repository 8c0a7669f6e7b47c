"""What a run needs to go on as if nothing had happened, and what `best.pth` needs to be used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ..core.errors import CheckpointError
from ..runtime.distributed import world_size
from ..runtime.log import logger
from ..runtime.model_weights import WeightFile, completed, load_strictly, merged_state_dict
from .checkpoint import LAST
from .det_engine import EpochMeter
from .reporting import plain
from .resume import continued_progress
from .stages import Progress
from .state_schema import check_optimizer_state

if TYPE_CHECKING:
    from .det_solver import DetSolver


def gather(solver: DetSolver) -> dict[str, Any]:
    """Return all that a run needs to go on as if nothing had happened."""
    guard = solver.step.guard
    return {
        "progress": vars(solver.progress).copy(),
        "seed": solver.seed,
        "model": solver.model.state_dict(),
        "ema": solver.ema.state_dict() if solver.ema is not None else None,
        "optimizer": solver.optimizer.state_dict(),
        "scaler": solver.scaler.state_dict() if solver.scaler else None,
        "guard": {"in_a_row": guard.in_a_row, "in_epoch": guard.in_epoch},
        "best": solver.best.state_dict(),
        "first_loss": solver.first_loss,
        "explained": solver.explained,
        "unreadable": solver.train_loader.dataset.unreadable_images(),
        "data": solver.identity,
        "meta": {"classes": solver.classes, "config": solver.config_text, **solver.origin},
        "world_size": world_size(),
        "effective_batch_size": solver.effective_batch_size,
        "meter": solver.meter.state_dict() if solver.meter else None,
    }


def restore(solver: DetSolver, state: dict[str, Any]) -> None:
    """Bring a run back to where `gather` found it.

    Raises:
        CheckpointError: if the state does not fit this model.
    """
    load_strictly(
        solver.model, WeightFile(Path(solver.settings.resume or LAST), state["model"], state["meta"])
    )
    if solver.ema is not None:
        if state["ema"] is None:
            raise CheckpointError(
                "the checkpoint has no weight average, but use_ema is on; switch it off or start with -t"
            )
        average = completed(state["ema"]["module"], solver.ema.module)
        solver.ema.load_state_dict({**state["ema"], "module": average})
    _load_optimizer(solver, state["optimizer"])
    if solver.scaler and state["scaler"]:
        solver.scaler.load_state_dict(state["scaler"])
    solver.step.guard.in_a_row, solver.step.guard.in_epoch = (
        state["guard"]["in_a_row"],
        state["guard"]["in_epoch"],
    )
    solver.best.load_state_dict(state["best"])
    solver.first_loss, solver.explained = state.get("first_loss"), state.get("explained", False)
    unreadable = [
        index for index in state.get("unreadable") or [] if index < len(solver.train_loader.dataset)
    ]
    if unreadable:
        solver.train_loader.dataset.remember_unreadable(unreadable)
    batch = solver.effective_batch_size
    solver.progress = continued_progress(
        Progress(**state["progress"]), state.get("effective_batch_size", batch), batch
    )
    if state["world_size"] != world_size():
        logger.warning(
            "going on with %d rank(s) where %d began: the images of every step are the same, the chance within the model is not",
            world_size(),
            state["world_size"],
        )
    solver.meter = EpochMeter.from_state(state["meter"], solver.device) if state.get("meter") else None
    solver.seed = state["seed"]
    solver.train_loader.set_seed(solver.seed)


def _load_optimizer(solver: DetSolver, state: dict[str, Any]) -> None:
    """Restore what the optimizer has gathered; when and how fast groups learn is the configuration's, whose epochs may have been raised."""
    kept = ("thaw_epoch", "name", "initial_lr")
    own = [
        {"initial_lr": group["lr"]} | {key: group[key] for key in kept if key in group}
        for group in solver.optimizer.param_groups
    ]
    parameters = [parameter for group in solver.optimizer.param_groups for parameter in group["params"]]
    try:
        solver.optimizer.load_state_dict(state)
        check_optimizer_state(solver.settings.resume or LAST, state, parameters)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{solver.settings.resume} was written with other groups of parameters: {error}; optimizer.params, LoRA and what the "
            f"backbone thaws must be as they were, or start a new run from its weights with -t"
        ) from None
    for group, settings in zip(solver.optimizer.param_groups, own):
        for key in kept:
            group.pop(key, None)
        group.update(settings)


def for_inference(
    solver: DetSolver, scored: nn.Module, epoch: int, metrics: dict[str, Any]
) -> dict[str, Any]:
    """Return what `best.pth` holds: plain weights and everything needed to use them (`src/inference/detector.py`)."""
    meta = {
        "classes": solver.classes,
        "config": solver.config_text,
        "epoch": epoch,
        "score": metrics[solver.best.metric],
        "metric": solver.best.metric,
        "metrics": plain(metrics),
        "threshold": metrics.get("F1_threshold"),
        "preprocessing": solver.cfg.evaluation_transforms,
        "input_size": list(
            solver.val_loader.dataset.output_size or solver.cfg.yaml_cfg.get("eval_spatial_size") or []
        ),
        **solver.origin,
    }
    return {"model": merged_state_dict(scored), "meta": meta}
