"""Batch norm whose counters are advanced together, once per batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that does not count batches in `forward`, which would cost a kernel in every layer.

    `num_batches_tracked` only matters for norms without `momentum`. A training step advances the counters of
    all norms together with `count_batch`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[B, C, H, W]`."""
        if self.momentum is None or not self.track_running_stats:
            return super().forward(x)
        self._check_input_dim(x)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


@torch.no_grad()
def count_batch(model: nn.Module) -> None:
    """Add 1 to the counters of all norms of the type `BatchNorm2d` that are in training mode.

    Example:
        >>> norm = BatchNorm2d(4)
        >>> count_batch(nn.Sequential(norm))
        >>> norm.num_batches_tracked
        tensor(1)
    """
    counters = []
    for module in model.modules():
        if isinstance(module, BatchNorm2d) and module.training:
            counter = module.num_batches_tracked
            if module.momentum is not None and counter is not None:
                counters.append(counter)
    if counters:
        torch._foreach_add_(counters, 1)
