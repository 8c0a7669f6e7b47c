"""Freeze and unfreeze parts of the model by epoch, and rebuild the DDP wrapper when they change."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
)
from torch.nn.parallel import DistributedDataParallel

from ..core.contracts import Phased
from ..runtime.distributed import world_size
from ..runtime.log import logger
from ..runtime.sync_batch_norm import SyncBatchNorm2d
from .training_step import TrainStep


class Phases:
    """Freeze and unfreeze parts of a model by epoch, without a restart on one rank or several."""

    def __init__(
        self, step: TrainStep, *, find_unused_parameters: bool = False
    ) -> None:
        """Store the arguments; the first call of `begin` builds the DDP wrapper.

        Args:
            step: training step with the model; its modules of the type `core.contracts.Phased` define the
                phases.
            find_unused_parameters: as in `DistributedDataParallel`.
        """
        self.step = step
        self.find_unused_parameters = find_unused_parameters
        modules = step.model.modules()
        self._phased = [
            module for module in modules if isinstance(module, Phased)
        ]
        self._begun = False

    def apply(self, epoch: int) -> None:
        """Set the model to the phase of an epoch, without rebuilding the DDP wrapper."""
        for module in self._phased:
            module.set_epoch(epoch)

    def begin(self, epoch: int) -> bool:
        """Set the model to the phase of an epoch. All ranks must call this together.

        Returns:
            True at the first call, and whenever the set of trainable parameters has changed.
        """
        before = self._trainable()
        self.apply(epoch)
        if self._begun and before == self._trainable():
            return False
        self._begun = True
        if world_size() > 1:
            self._wrap()
        return True

    def _trainable(self) -> list[bool]:
        return [
            parameter.requires_grad
            for parameter in self.step.model.parameters()
        ]

    def _wrap(self) -> None:
        """Rebuild the DDP wrapper: it records the trainable parameters at construction."""
        step = self.step
        step.wrapped = step.model
        step.half_weights.forget_buckets()
        gc.collect()  # removes the previous wrapper's hooks on the parameters
        device_ids = [step.device.index] if step.device.type == "cuda" else None
        step.wrapped = DistributedDataParallel(
            step.model,
            device_ids=device_ids,
            find_unused_parameters=self.find_unused_parameters,
            gradient_as_bucket_view=True,
            **_buffer_settings(step.model),
        )
        # without a hook, DDP divides each gradient, and not each bucket, by the number of ranks
        step.writes_buckets = (
            step.amp_dtype is not None and not self.find_unused_parameters
        )
        if step.writes_buckets:
            step.wrapped.register_comm_hook(None, allreduce_hook)


def _buffer_settings(model: nn.Module) -> dict[str, Any]:
    """Return the setting of DDP that leaves buffers alone, if all ranks compute the same ones anyway.

    Buffers are batch statistics and constants. With synchronized batch norms, sending those of rank 0 in
    every step would cost about 250 kernels and change nothing.
    """
    if not any(isinstance(part, SyncBatchNorm2d) for part in model.modules()):
        return {}
    known = inspect.signature(DistributedDataParallel).parameters
    # torch 2.13 renamed the setting
    renamed = "forward_sync_buffers"
    return {renamed if renamed in known else "broadcast_buffers": False}


def log_trainable_parameters(
    epoch: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rates: list[float],
) -> None:
    """Log the number of trainable parameters, and the rate, weight decay and size of each parameter group."""
    total = 0
    trainable = 0
    for parameter in model.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trainable += parameter.numel()
    logger.info(
        "epoch %d: %.2f M of %.2f M parameters are trainable",
        epoch + 1,
        trainable / 1e6,
        total / 1e6,
    )
    for group, rate in zip(optimizer.param_groups, rates):
        if group.get("thaw_epoch", 0) <= epoch:
            size = sum(parameter.numel() for parameter in group["params"])
            logger.info(
                "  lr %-9.3g decay %-9.3g %8.3f M in %3d tensors: %s",
                rate,
                group["weight_decay"],
                size / 1e6,
                len(group["params"]),
                group.get("name", ""),
            )
