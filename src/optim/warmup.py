"""Small learning rates at the start, of the run or of what thaws in it."""

from __future__ import annotations

from ..core.durations import Duration, RunLength, settled
from ..core.errors import ConfigError
from ..core.registry import register
from ..runtime.log import logger

LARGEST_SHARE = 0.1
"""Of all steps of a run: a longer warm-up would leave a small data set little to learn with."""


@register()
class LinearWarmup:
    """Scales learning rates from near zero to one over the first steps."""

    power = 1

    def __init__(self, warmup_duration: Duration) -> None:
        """Store the duration; a whole number counts steps, 0 switches warm-up off."""
        self.warmup_duration = warmup_duration
        self._steps = settled(warmup_duration, f"{type(self).__name__}.warmup_duration", "steps")

    def set_run_length(self, run: RunLength) -> None:
        """Settle the duration, a tenth of the run at most."""
        wanted = run.in_steps(self.warmup_duration, f"{type(self).__name__}.warmup_duration")
        self._steps = min(wanted, int(run.steps * LARGEST_SHARE))
        if self._steps < wanted:
            logger.info("warm-up takes %d steps, a tenth of the run, in place of %d", self._steps, wanted)

    def factor(self, step: int) -> float:
        """Return the factor for a step (0-based): min(1, ((step + 1) / duration) ** power)."""
        if self._steps is None:
            raise ConfigError(
                f"{type(self).__name__}: the duration is {self.warmup_duration!r} of the run, whose length has not been told (set_run_length)"
            )
        return min(1.0, (step + 1) / self._steps) ** self.power if self._steps else 1.0


@register()
class QuadraticWarmup(LinearWarmup):
    """Scales learning rates by the square of what `LinearWarmup` does, as DEIM and DEIMv2 warm up (Huang et al., 2025)."""

    power = 2
