"""What trains in which epoch, and the wrapper for several ranks, which has to know."""

from __future__ import annotations

import gc

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..core.contracts import Phased
from ..runtime.distributed import world_size
from ..runtime.log import logger
from .training_step import TrainStep


class Phases:
    """Freezes and thaws parts of a model by epoch; several ranks go on without a restart."""

    def __init__(self, step: TrainStep, *, find_unused_parameters: bool = False) -> None:
        """Store; the first call of `begin` makes the wrapper.

        Args:
            step: whose model it is; modules of it that are `core.contracts.Phased` say what is due.
            find_unused_parameters: as in `DistributedDataParallel`.
        """
        self.step, self.find_unused_parameters = step, find_unused_parameters
        self._phased = [module for module in step.model.modules() if isinstance(module, Phased)]
        self._begun = False

    def apply(self, epoch: int) -> None:
        """Put the model in the phase of an epoch, for a rehearsal before the run."""
        for module in self._phased:
            module.set_epoch(epoch)

    def begin(self, epoch: int) -> bool:
        """Freeze and thaw what is due in an epoch; return whether that is new. All ranks must call this together."""
        before = self._trained()
        self.apply(epoch)
        if self._begun and before == self._trained():
            return False
        self._begun = True
        if world_size() > 1:
            self._wrap()
        return True

    def _trained(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.step.model.parameters()]

    def _wrap(self) -> None:
        """Make the wrapper anew, since it takes note of what trains when it is made."""
        step = self.step
        step.wrapped = step.model
        gc.collect()  # the earlier wrapper's hooks on the parameters go with it
        step.wrapped = DistributedDataParallel(
            step.model,
            device_ids=[step.device.index] if step.device.type == "cuda" else None,
            find_unused_parameters=self.find_unused_parameters,
            gradient_as_bucket_view=True,
        )


def log_trainable_parameters(
    epoch: int, model: nn.Module, optimizer: torch.optim.Optimizer, rates: list[float]
) -> None:
    """Log how many parameters train in an epoch, and each group's rate, decay and size."""
    parameters = list(model.parameters())
    logger.info(
        "epoch %d: %.2f M of %.2f M parameters train",
        epoch + 1,
        sum(p.numel() for p in parameters if p.requires_grad) / 1e6,
        sum(p.numel() for p in parameters) / 1e6,
    )
    for group, rate in zip(optimizer.param_groups, rates):
        if group.get("thaw_epoch", 0) <= epoch:
            logger.info(
                "  lr %-9.3g decay %-9.3g %8.3f M in %3d tensors: %s",
                rate,
                group["weight_decay"],
                sum(p.numel() for p in group["params"]) / 1e6,
                len(group["params"]),
                group.get("name", ""),
            )
