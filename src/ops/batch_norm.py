"""Batch norm whose counters are advanced together, once per batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


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


def merge_norms(layers: nn.Sequential) -> None:
    """Merge each batch norm into the convolution before it, in place; both are in eval mode.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNorm2d(4), nn.ReLU()).eval()
        >>> merge_norms(layers)
        >>> [type(layer).__name__ for layer in layers]
        ['Conv2d', 'Identity', 'ReLU']
    """
    for index in range(1, len(layers)):
        before, norm = layers[index - 1], layers[index]
        if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[index - 1] = fuse_conv_bn_eval(before, norm)
            layers[index] = nn.Identity()


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


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose statistics, scale and offset are buffers: nothing is trained or updated.

    The names of the buffers are those of `nn.BatchNorm2d` without the counter of batches, which is dropped
    when a state dict is loaded. torchvision's class of the same name gives the same numbers.

    Example:
        >>> norm = FrozenBatchNorm2d(2)
        >>> sorted(norm.state_dict())
        ['bias', 'running_mean', 'running_var', 'weight']
        >>> norm(torch.ones(1, 2, 1, 1)).flatten()
        tensor([1.0000, 1.0000])
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        """Start as the identity, up to `eps`.

        Args:
            num_features: number of channels, C.
            eps: added to the variances.
        """
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_load_state_dict_pre_hook(_drop_counter)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[B, C, H, W]` with the stored statistics."""
        factor = self.weight * torch.rsqrt(self.running_var + self.eps)
        offset = self.bias - self.running_mean * factor
        shape = (1, -1, 1, 1)
        return x * factor.reshape(shape) + offset.reshape(shape)

    def extra_repr(self) -> str:
        """Return the number of channels and `eps`."""
        return f"{len(self.weight)}, eps={self.eps}"


def _drop_counter(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Drop the counter of batches of the norm that was frozen."""
    state_dict.pop(f"{prefix}num_batches_tracked", None)
