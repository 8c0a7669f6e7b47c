"""Loss scaling for fp16, which bf16 does not need."""

from __future__ import annotations

import torch

from ..core.registry import arguments_of, register


@register("GradScaler")
def build_grad_scaler(device: str, **settings: object) -> torch.amp.GradScaler:
    """Return torch's scaler for a device type; YAML sets its other arguments."""
    return torch.amp.GradScaler(device, **settings)


build_grad_scaler.__extra_arguments__ = lambda: arguments_of(torch.amp.GradScaler, skip="device")
