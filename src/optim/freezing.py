"""Plan when each parameter is trained and at which rate; a phased backbone unfreezes some later."""

from __future__ import annotations

from torch import nn

from ..core.contracts import Learning, Phased

FROM_THE_START = Learning(0, 1.0)
"""Plan of a parameter that no module mentions: trained from the start at the full rate."""


def learning_plan(model: nn.Module) -> dict[str, Learning]:
    """Return start epoch and rate factor of each parameter by name, without those never trained."""
    plan: dict[str, Learning] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plan[name] = FROM_THE_START
    for prefix, module in model.named_modules():
        if isinstance(module, Phased):
            for name, learning in module.learning_plan().items():
                plan[f"{prefix}.{name}" if prefix else name] = learning
    return plan
