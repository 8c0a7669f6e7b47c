"""The epoch and rate at which each parameter trains: a phased backbone unfreezes some during a run."""

from __future__ import annotations

from torch import nn

from ..core.contracts import Learning, Phased

FROM_THE_START = Learning(0, 1.0)
"""Learning of a parameter that no plan mentions."""


def learning_plan(model: nn.Module) -> dict[str, Learning]:
    """Return how each parameter learns, by its name in the model; those that never do are left out."""
    plan = {name: FROM_THE_START for name, parameter in model.named_parameters() if parameter.requires_grad}
    for prefix, module in model.named_modules():
        if isinstance(module, Phased):
            plan |= {
                f"{prefix}.{name}" if prefix else name: learning
                for name, learning in module.learning_plan().items()
            }
    return plan
