"""Explain why a model detects nothing although its loss decreases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.contracts import Diagnoses, Evaluator
from ..runtime.distributed import is_main
from ..runtime.log import logger
from .run_state import RunState

FIRST_EPOCH = 3
"""Warn from this epoch on, counted from 0."""

LARGEST_AP50 = 1e-3
"""Warn if AP50 is at or below this value."""


def explain_nothing_found(
    state: RunState,
    loss: float,
    metrics: Mapping[str, Any],
    evaluator: Evaluator,
) -> None:
    """Log the evaluator's diagnosis, once in a run, if the loss has decreased but nothing is detected.

    Args:
        state: state of the run at the end of an epoch.
        loss: mean loss of the epoch.
        metrics: results of the epoch's evaluation.
        evaluator: evaluator, which may have `diagnose`.
    """
    if state.first_loss is None:
        state.first_loss = loss
    has_decreased = loss < state.first_loss
    if (
        state.explained
        or state.progress.epoch < FIRST_EPOCH
        or not has_decreased
    ):
        return
    if "AP50" not in metrics or (metrics["AP50"] or 0.0) > LARGEST_AP50:
        return
    state.explained = True
    if is_main() and isinstance(evaluator, Diagnoses):
        logger.warning(
            "nothing is detected although the loss decreases: %s",
            evaluator.diagnose(),
        )
