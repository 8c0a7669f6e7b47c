"""An explanation for runs whose loss falls although nothing is found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.contracts import Diagnoses, Evaluator
from ..runtime.distributed import is_main
from ..runtime.log import logger
from .run_state import RunState

FIRST_EPOCH = 3
"""The explanation comes after this epoch, counted from 0, or later."""

LARGEST_AP50 = 1e-3
"""Up to this AP50 a model is taken to find nothing."""


def explain_nothing_found(
    state: RunState, loss: float, metrics: Mapping[str, Any], evaluator: Evaluator
) -> None:
    """Once in a run, log what the evaluator says if the loss has fallen for some epochs and nothing is found.

    Args:
        state: of the run, at the end of an epoch.
        loss: mean of the epoch.
        metrics: of its evaluation.
        evaluator: may have `diagnose`.
    """
    if state.first_loss is None:
        state.first_loss = loss
    if state.explained or state.progress.epoch < FIRST_EPOCH or loss >= state.first_loss:
        return
    if "AP50" not in metrics or (metrics["AP50"] or 0.0) > LARGEST_AP50:
        return
    state.explained = True
    if is_main() and isinstance(evaluator, Diagnoses):
        logger.warning("nothing is found although the loss falls: %s", evaluator.diagnose())
