"""Small learning rates at the start."""

from __future__ import annotations

from ..core.errors import ConfigError
from ..core.registry import register


@register()
class LinearWarmup:
    """Scales learning rates from near zero to one over the first steps."""

    def __init__(self, warmup_duration: int) -> None:
        """Store the duration in steps; 0 switches warm-up off."""
        if warmup_duration < 0:
            raise ConfigError(f"LinearWarmup.warmup_duration is {warmup_duration}, expected at least 0")
        self.warmup_duration = warmup_duration

    def factor(self, step: int) -> float:
        """Return the factor for a step (0-based): min(1, (step + 1) / duration)."""
        return min(1.0, (step + 1) / self.warmup_duration) if self.warmup_duration else 1.0
