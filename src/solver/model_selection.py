"""Keep track of the best weights of a run, and compare a score with the one that is required."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..core.errors import NumericsError


@dataclass
class BestModel:
    """Remember the best score of the run and, during stage 1, the weights that reached it."""

    metric: str = "AP"
    score: float | None = None
    epoch: int | None = None
    stage_one_weights: dict[str, Tensor] = field(default_factory=dict)
    """Best weights of stage 1, on the CPU; empty in stage 2."""

    def consider(
        self,
        epoch: int,
        metrics: Mapping[str, Any],
        weights: dict[str, Tensor],
        stage: int,
    ) -> bool:
        """Record an evaluation and return whether it is the best so far.

        The first evaluation always is. An undefined score is never better than an earlier one.

        Args:
            epoch: epoch from 0.
            metrics: results of the evaluation.
            weights: state_dict that was evaluated; it is copied.
            stage: 1 or 2.
        """
        score = metrics[self.metric]
        if score is not None and not math.isfinite(score):
            score = None
        if self.epoch is not None:
            is_first_score = self.score is None
            if score is None or not (is_first_score or score > self.score):
                return False
        self.score = score
        self.epoch = epoch
        self.stage_one_weights = {}
        if stage == 1:
            for name, weight in weights.items():
                self.stage_one_weights[name] = weight.detach().to(
                    "cpu", copy=True
                )
        return True

    def forget_score(self) -> None:
        """Reset the score so that the next evaluation counts as the best; the best weights are missing."""
        self.score = None
        self.epoch = None

    def forget(self) -> None:
        """Reset score and weights, because new scores cannot be compared with earlier ones."""
        self.forget_score()
        self.stage_one_weights = {}

    def state_dict(self) -> dict[str, Any]:
        """Return all values, for the checkpoint."""
        return {
            "metric": self.metric,
            "score": self.score,
            "epoch": self.epoch,
            "stage_one_weights": self.stage_one_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`; the state of a different metric is ignored."""
        if state.get("metric", self.metric) != self.metric:
            return
        self.score = state["score"]
        self.epoch = state["epoch"]
        self.stage_one_weights = state["stage_one_weights"]


def require_ap(metrics: Mapping[str, Any], minimum: float) -> None:
    """Raise if the AP of an evaluation is below a minimum; an undefined AP is.

    Args:
        metrics: results of the evaluation, with "AP" in 0..1 or None.
        minimum: required AP, 0..1.

    Raises:
        NumericsError: if AP is not defined or below `minimum`.
    """
    score = metrics["AP"]
    if score is None or not math.isfinite(score):
        raise NumericsError(
            f"AP is not defined, but --min-ap requires at least {minimum:g}: "
            "the validation data has no objects"
        )
    if score < minimum:
        raise NumericsError(
            f"AP is {score:.4f}, but --min-ap requires at least {minimum:g}: train "
            "longer, compare the data with that of an earlier run, or lower the limit"
        )
