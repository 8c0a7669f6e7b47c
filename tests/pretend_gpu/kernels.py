"""Kernels that exist on CUDA devices only, computed on the CPU.

Each function takes the arguments of the operation for which it is registered. Attention uses the CPU's own
kernels; the parts of SyncBatchNorm follow from its definition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

KERNELS: dict[str, Callable[..., Any]] = {}


def computes(name: str) -> Callable[[Callable], Callable]:
    """Register a function for an operation of `aten`."""

    def register(function: Callable) -> Callable:
        KERNELS[f"aten::{name}"] = function
        return function

    return register


# ---- softmax that reads fp16 and returns float32, or the reverse ----


@computes("_softmax")
def softmax(x, dim, to_float):
    return aten._softmax(x.float() if to_float else x, dim, False)


@computes("_log_softmax")
def log_softmax(x, dim, to_float):
    return aten._log_softmax(x.float() if to_float else x, dim, False)


@computes("_softmax_backward_data")
def softmax_backward(grad, out, dim, dtype):
    return aten._softmax_backward_data(grad, out, dim, grad.dtype).to(dtype)


@computes("_log_softmax_backward_data")
def log_softmax_backward(grad, out, dim, dtype):
    return aten._log_softmax_backward_data(grad, out, dim, grad.dtype).to(dtype)


# ---- attention ----


def attend(q, k, v, bias, causal, scale):
    """Return the output and the logarithm of the sums."""
    return aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, causal, attn_mask=bias, scale=scale
    )


def attend_backward(grad, q, k, v, bias, out, sums, causal, scale):
    """Return the gradients of q, k and v."""
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, sums, 0.0, causal, attn_mask=bias, scale=scale
    )


def number() -> Tensor:
    """Return a state of the generator, which nothing reads."""
    return torch.zeros((), dtype=torch.int64)


@computes("_scaled_dot_product_efficient_attention")
def efficient(q, k, v, bias, _, dropout=0.0, causal=False, *, scale=None):
    return *attend(q, k, v, bias, causal, scale), number(), number()


@computes("_scaled_dot_product_efficient_attention_backward")
def efficient_backward(
    grad, q, k, v, bias, out, sums, seed, offset, dropout, mask, causal=False, *, scale=None
):  # fmt: skip
    if mask[3]:
        raise NotImplementedError("the gradient of an attention bias")
    bias = bias if bias is not None and bias.numel() else None
    grads = attend_backward(grad, q, k, v, bias, out, sums, causal, scale)
    return *grads, torch.empty(0)


@computes("_scaled_dot_product_flash_attention")
def flash(q, k, v, dropout=0.0, causal=False, debug=False, *, scale=None):
    none, lengths = torch.empty(0), (q.shape[2], k.shape[2])
    state = torch.zeros(2, dtype=torch.uint64)
    out = attend(q, k, v, None, causal, scale)
    return *out, none, none, *lengths, state, state[:0], none


@computes("_scaled_dot_product_flash_attention_backward")
def flash_backward(
    grad, q, k, v, out, sums, cq, ck, mq, mk, dropout, causal, seed, offset, *, scale=None
):  # fmt: skip
    return attend_backward(grad, q, k, v, None, out, sums, causal, scale)


@computes("_scaled_dot_product_cudnn_attention")
def cudnn(
    q, k, v, bias, _, dropout=0.0, causal=False, debug=False, *, scale=None
):
    none, lengths = torch.empty(0), (q.shape[2], k.shape[2])
    out = attend(q, k, v, bias, causal, scale)
    return *out, none, none, *lengths, number(), number(), none


@computes("_scaled_dot_product_cudnn_attention_backward")
def cudnn_backward(
    grad, q, k, v, out, sums, seed, offset, bias, cq, ck, mq, mk, dropout, causal, *, scale=None
):  # fmt: skip
    bias = bias if bias is not None and bias.numel() else None
    return attend_backward(grad, q, k, v, bias, out, sums, causal, scale)


# ---- batch normalization ----


@computes("cudnn_batch_norm")
def batch_norm(x, weight, bias, mean, var, training, momentum, eps):
    found = aten.native_batch_norm(
        x, weight, bias, mean, var, training, momentum, eps
    )
    return *found, torch.empty(0, dtype=torch.uint8)


@computes("cudnn_batch_norm_backward")
def batch_norm_backward(
    x, grad, weight, mean, var, saved_mean, saved_rstd, eps, _
):
    arguments = (
        grad.contiguous(),
        x,
        weight,
        mean,
        var,
        saved_mean,
        saved_rstd,
    )
    return aten.native_batch_norm_backward(*arguments, True, eps, [True] * 3)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return values `[C]` so that they broadcast over x, `[B, C, ...]`."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def sum_channels(x: Tensor) -> Tensor:
    """Return the sums `[C]` over all dimensions of x, `[B, C, ...]`, but the second."""
    return x.transpose(0, 1).flatten(1).sum(1)


@computes("batch_norm_stats")
def local_statistics(x, eps):
    x = x.float()
    count = x.numel() / x.shape[1]
    mean = sum_channels(x) / count
    var = sum_channels((x - by_channel(mean, x)) ** 2) / count
    return mean, (var + eps).rsqrt()


@computes("batch_norm_gather_stats_with_counts")
def gather_statistics(x, means, rstds, mean, var, momentum, eps, counts):
    """Return mean and reciprocal deviation over ranks, `[C]`, from those of each rank, `[ranks, C]`."""
    parts = counts[:, None] / counts.sum()
    total_mean = (means * parts).sum(0)
    local_var = rstds**-2 - eps
    total_var = ((local_var + (means - total_mean) ** 2) * parts).sum(0)
    if mean is not None:
        mean.lerp_(total_mean, momentum)
        var.lerp_(total_var * counts.sum() / (counts.sum() - 1), momentum)
    return total_mean, (total_var + eps).rsqrt()


@computes("batch_norm_elemt")
def normalize(x, weight, bias, mean, rstd, eps):
    y = (x.float() - by_channel(mean, x)) * by_channel(rstd, x)
    if weight is not None:
        y = y * by_channel(weight, x) + by_channel(bias, x)
    return y.to(x.dtype)


@computes("batch_norm_backward_reduce")
def reduce_gradients(grad, x, mean, rstd, weight, *needed):
    grad = grad.float()
    sums = sum_channels(grad)
    products = sum_channels(grad * (x.float() - by_channel(mean, x)))
    return sums, products, products * rstd, sums.clone()


@computes("batch_norm_backward_elemt")
def input_gradient(grad, x, mean, rstd, weight, sums, products, counts):
    count = counts.sum()
    along = by_channel(rstd**2 * products / count, x)
    centred = x.float() - by_channel(mean, x)
    inner = grad.float() - by_channel(sums / count, x) - centred * along
    factor = rstd if weight is None else rstd * weight
    return (inner * by_channel(factor, x)).to(x.dtype)
