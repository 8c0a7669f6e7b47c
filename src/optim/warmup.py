"""Learning rate warm-up, at the start of a run and of parameters that are unfrozen later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.counts import counted
from ..core.durations import RunLength, StepLength
from ..core.registry import register
from ..runtime.log import logger

LARGEST_SHARE = 0.1
"""Maximum warm-up as a fraction of a run's steps, so that a short run is not mostly warm-up."""


@register()
class LinearWarmup:
    """Scale learning rates by a factor that grows linearly to one."""

    power = 1

    def __init__(self, warmup_duration: StepLength) -> None:
        """Store the duration in steps; 0 disables warm-up."""
        self.warmup_duration = warmup_duration

    @staticmethod
    def __resolve_lengths__(
        settings: Mapping[str, Any], run: RunLength
    ) -> dict[str, Any]:
        """Limit the duration to a tenth of the run's steps."""
        wanted = run.in_steps(settings["warmup_duration"], "warmup_duration")
        longest = int(run.steps * LARGEST_SHARE)
        if wanted <= longest:
            return {}
        logger.info(
            "warm-up is limited to %s, a tenth of the run, instead of %d",
            counted(longest, "step"),
            wanted,
        )
        return {"warmup_duration": longest}

    def factor(self, step: int) -> float:
        """Return the factor of a step (from 0): min(1, ((step + 1) / duration) ** power)."""
        if not self.warmup_duration:
            return 1.0
        return min(1.0, (step + 1) / self.warmup_duration) ** self.power


@register()
class QuadraticWarmup(LinearWarmup):
    """Scale learning rates by the square of `LinearWarmup`'s factor (DEIMv2, Huang et al., 2025)."""

    power = 2
