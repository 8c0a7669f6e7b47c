"""Loss scaling for fp16; bf16 does not need it."""

from __future__ import annotations

from typing import Any

import torch

from ..core.registry import arguments_of, register


@register(
    "GradScaler",
    extra_arguments=lambda: arguments_of(torch.amp.GradScaler, skip="device"),
)
def build_grad_scaler(device: str, **settings: Any) -> torch.amp.GradScaler:
    """Return torch's gradient scaler for a device type; YAML sets its other arguments."""
    return torch.amp.GradScaler(device, **settings)
