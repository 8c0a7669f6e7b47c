"""Batch norm with statistics over all ranks, without host-device synchronizations.

torch's `SyncBatchNorm` selects the ranks that have images by a mask, which takes three host-device
synchronizations per layer. Here every rank has images, so no mask is needed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .distributed import world_size


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the images of all ranks (Ioffe and Szegedy, 2015); every rank must have images.

    Entries of the state dict are those of `nn.BatchNorm2d`. `num_batches_tracked` is not counted, because it
    only matters for norms without `momentum`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize `[B, C, H, W]`; in evaluation, and in a single process, as `nn.BatchNorm2d` does."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        return _SyncedNorm.apply(
            x.contiguous(),
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
        )


def synchronize_batch_norms(model: nn.Module) -> nn.Module:
    """Return the model with all `nn.BatchNorm2d` layers replaced by `SyncBatchNorm2d`, with their tensors.

    Example:
        >>> model = synchronize_batch_norms(nn.Sequential(nn.BatchNorm2d(4)))
        >>> type(model[0]).__name__
        'SyncBatchNorm2d'
    """
    if isinstance(model, SyncBatchNorm2d):
        return model
    if isinstance(model, nn.BatchNorm2d):
        return _synchronized(model)
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norms(child))
    return model


def _synchronized(norm: nn.BatchNorm2d) -> SyncBatchNorm2d:
    """Return a synchronized norm with the settings, parameters and buffers of another."""
    with torch.device("meta"):
        synced = SyncBatchNorm2d(
            norm.num_features, norm.eps, norm.momentum, norm.affine
        )
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(synced, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(synced, name, buffer)
    return synced.train(norm.training)


class _SyncedNorm(torch.autograd.Function):
    """Normalize with the mean and variance over all ranks; one collective forward, one backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        mean, invstd = _stats(x, eps)
        count = _constant(x.numel() // x.shape[1], x.device)
        own = torch.cat([mean, invstd, count])
        everyone = own.new_empty(world_size() * len(own))
        dist.all_gather_into_tensor(everyone, own)
        channels = x.shape[1]
        means, invstds, counts = everyone.view(world_size(), -1).split(
            [channels, channels, 1], dim=1
        )
        mean, invstd = _joined_stats(
            x, means, invstds, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, invstd)
        ctx.counts = _Counts(counts.flatten())
        return _normalized(x, weight, bias, mean, invstd, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        counts = ctx.counts.integers()
        grad = grad.contiguous()
        sums, grad_weight, grad_bias = _grad_sums(grad, x, mean, invstd, weight)
        dist.all_reduce(sums)
        grad_x = _grad_input(grad, x, mean, invstd, weight, sums, counts)
        return grad_x, grad_weight, grad_bias, None, None, None, None


class _Counts:
    """Values per channel on each rank, `[ranks]`; all layers' counts are made integers together."""

    _waiting: WeakSet[_Counts] = WeakSet()

    def __init__(self, floats: Tensor) -> None:
        self.floats = floats
        self._integers: Tensor | None = None
        self._waiting.add(self)

    def integers(self) -> Tensor:
        """Return the counts as int32, contiguous, as the gradient needs them."""
        if self._integers is None:
            waiting = list(self._waiting)
            rows = torch.stack([counts.floats for counts in waiting]).int()
            for counts, row in zip(waiting, rows.unbind()):
                counts._integers = row
                self._waiting.discard(counts)
        assert self._integers is not None  # it was among those that waited
        return self._integers


@lru_cache(maxsize=64)
def _constant(value: int, device: torch.device) -> Tensor:
    """Return a number as a tensor `[1]` on a device; it is kept, so that it costs no launch."""
    return torch.full((1,), float(value), device=device)


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(variance + eps) of each channel on this rank, `[C]` float32."""
    if x.is_cuda:
        return torch.batch_norm_stats(x, eps)
    var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    return mean, (var + eps).rsqrt()


def _joined_stats(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return mean and 1 / sqrt(variance + eps) over all ranks, and update the running statistics.

    Args:
        x: input of this rank.
        means: means of each rank, `[ranks, C]`.
        invstds: 1 / sqrt(variance + eps) of each rank, `[ranks, C]`.
        running_mean: `[C]`.
        running_var: `[C]`, of unbiased variances.
        momentum: weight of the present batch in the running statistics.
        eps: number added to variances.
        counts: values per channel on each rank, `[ranks, 1]`.
    """
    if x.is_cuda:
        return torch.batch_norm_gather_stats_with_counts(
            x,
            means,
            invstds,
            running_mean,
            running_var,
            momentum,
            eps,
            counts.flatten(),
        )
    total = counts.sum()
    fractions = counts / total
    mean = (means * fractions).sum(0)
    variances = invstds.pow(-2) - eps
    # the variance over all ranks is that within ranks plus that between them (Chan et al., 1979)
    var = ((variances + (means - mean) ** 2) * fractions).sum(0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * (total / (total - 1)), momentum)
    return mean, (var + eps).rsqrt()


def _normalized(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    invstd: Tensor,
    eps: float,
) -> Tensor:
    if x.is_cuda:
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
    scale = (weight * invstd)[:, None, None]
    shifted = x.float() - mean[:, None, None]
    return (shifted * scale + bias[:, None, None]).to(x.dtype)


def _grad_sums(
    grad: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the gradient of the input needs from all ranks, and the gradients of weight and bias.

    Returns:
        The sums of grad and of grad * (x - mean), `[2, C]`; gradients `[C]` of this rank.
    """
    if x.is_cuda:
        total, with_x, grad_weight, grad_bias = (
            torch.batch_norm_backward_reduce(
                grad, x, mean, invstd, weight, True, True, True
            )
        )
        return torch.stack([total, with_x]), grad_weight, grad_bias
    grad = grad.float()
    total = grad.sum((0, 2, 3))
    shifted = x.float() - mean[:, None, None]
    with_x = (grad * shifted).sum((0, 2, 3))
    grad_weight = (with_x * invstd).to(weight.dtype)
    return torch.stack([total, with_x]), grad_weight, total.to(weight.dtype)


def _grad_input(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    sums: Tensor,
    counts: Tensor,
) -> Tensor:
    """Return the gradient of the input from the sums over all ranks."""
    total, with_x = sums.unbind()
    if x.is_cuda:
        return torch.batch_norm_backward_elemt(
            grad, x, mean, invstd, weight, total, with_x, counts
        )
    number = counts.sum()
    shifted = x.float() - mean[:, None, None]
    along_x = (with_x / number * invstd**2)[:, None, None]
    centred = grad.float() - (total / number)[:, None, None]
    scale = (weight * invstd)[:, None, None]
    return ((centred - shifted * along_x) * scale).to(x.dtype)
