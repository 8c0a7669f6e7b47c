"""Which weights are the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class BestModel:
    """Remembers the best score of the run and, through stage 1, the weights that reached it."""

    metric: str = "AP"
    score: float | None = None
    epoch: int | None = None
    stage_one_weights: dict[str, Tensor] = field(default_factory=dict)
    """On the CPU; empty once stage 2 has begun."""

    def consider(
        self, epoch: int, metrics: Mapping[str, Any], weights: dict[str, Tensor], stage: int
    ) -> bool:
        """Record an evaluation; return True if it is the best so far. A first one always is, an undefined score is
        never better than another."""
        score = metrics[self.metric]
        if score is not None and not math.isfinite(score):
            score = None
        if self.epoch is not None and (score is None or (self.score is not None and score <= self.score)):
            return False
        self.score, self.epoch = score, epoch
        self.stage_one_weights = (
            {k: v.detach().to("cpu", copy=True) for k, v in weights.items()} if stage == 1 else {}
        )
        return True

    def forget_score(self) -> None:
        """Let the next evaluation count as the best, because the weights of the best one are gone."""
        self.score, self.epoch = None, None

    def forget(self) -> None:
        """Start anew, because scores from now on cannot be compared with those before."""
        self.score, self.epoch, self.stage_one_weights = None, None, {}

    def state_dict(self) -> dict[str, Any]:
        """Return everything, for the checkpoint."""
        return {
            "metric": self.metric,
            "score": self.score,
            "epoch": self.epoch,
            "stage_one_weights": self.stage_one_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from `state_dict`; the score of another metric than the configuration's is forgotten."""
        if state.get("metric", self.metric) != self.metric:
            return
        self.score, self.epoch, self.stage_one_weights = (
            state["score"],
            state["epoch"],
            state["stage_one_weights"],
        )
