"""Parameter groups, learning rate schedules, loss scaling and EMA. Importing this package registers them."""

from . import ema, freezing, param_groups, scaler, schedulers, warmup

__all__ = ["ema", "freezing", "param_groups", "scaler", "schedulers", "warmup"]
