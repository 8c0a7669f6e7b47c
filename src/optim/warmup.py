"""Small learning rates at the start, of the run or of what thaws in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.durations import RunLength, StepLength
from ..core.registry import register
from ..runtime.log import logger

LARGEST_SHARE = 0.1
"""Of all steps of a run: a longer warm-up would leave a small data set little to learn with."""


@register()
class LinearWarmup:
    """Scales learning rates from near zero to one over the first steps."""

    power = 1

    def __init__(self, warmup_duration: StepLength) -> None:
        """Store the duration in steps; 0 switches warm-up off."""
        self.warmup_duration = warmup_duration

    @staticmethod
    def __resolve_lengths__(settings: Mapping[str, Any], run: RunLength) -> dict[str, Any]:
        """Limit the duration to a tenth of the run's steps."""
        wanted = run.in_steps(settings["warmup_duration"], "warmup_duration")
        longest = int(run.steps * LARGEST_SHARE)
        if wanted <= longest:
            return {}
        logger.info("warm-up takes %d steps, a tenth of the run, in place of %d", longest, wanted)
        return {"warmup_duration": longest}

    def factor(self, step: int) -> float:
        """Return the factor for a step (0-based): min(1, ((step + 1) / duration) ** power)."""
        if not self.warmup_duration:
            return 1.0
        return min(1.0, (step + 1) / self.warmup_duration) ** self.power


@register()
class QuadraticWarmup(LinearWarmup):
    """Scales learning rates by the square of what `LinearWarmup` does, as DEIM and DEIMv2 warm up (Huang et
    al., 2025)."""

    power = 2
