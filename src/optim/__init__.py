"""Parameter groups, learning rates and weight averaging. Importing this package registers them."""

from . import ema, param_groups, scaler, schedulers, warmup

__all__ = ["ema", "param_groups", "scaler", "schedulers", "warmup"]
