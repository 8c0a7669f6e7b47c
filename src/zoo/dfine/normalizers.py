"""The divisors of the loss terms, for one batch over all ranks or for all batches of an accumulation window.

They are separate from the loss because the training step computes those of a window beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...runtime.distributed import sum_over_ranks, world_size


class Normalizers(NamedTuple):
    """Divisors of the sums.

    They are means over ranks of the counts in a micro-batch, or in all micro-batches of an accumulation
    window.
    """

    targets: Tensor | float
    """Number of objects. It divides the class terms and, times the number of groups, all denoising terms."""
    union: Tensor | float
    """Number of pairs in the union of all matchings. It divides the box and localization terms."""
    share: float = 1.0
    """Fraction of the window's images in this micro-batch. It multiplies the distillation terms (means)."""


def all_rank_normalizers(
    num_targets: int, num_union: int, device: torch.device
) -> Normalizers:
    """Return the mean counts over ranks, at least 1, without a host-device synchronization."""
    if world_size() == 1:
        return Normalizers(
            max(float(num_targets), 1.0), max(float(num_union), 1.0)
        )
    own = torch.tensor([num_targets, num_union], dtype=torch.float32)
    own = own.to(device, non_blocking=True)
    mean = sum_over_ranks(own) / world_size()
    targets, union = mean.clamp(min=1).unbind()
    return Normalizers(targets, union)


def window_normalizers(
    counts: Sequence[tuple[int, int]],
    images: Sequence[int],
    device: torch.device,
) -> list[Normalizers]:
    """Return the normalizers of each batch in an accumulation window.

    With them, the losses of all batches add up to the loss of one large batch.

    Args:
        counts: number of objects, and of pairs in the union of all matchings, of each batch.
        images: number of images in each batch, which weights the distillation terms.
        device: device of the losses.
    """
    num_targets = sum(targets for targets, _ in counts)
    num_union = sum(union for _, union in counts)
    whole = all_rank_normalizers(num_targets, num_union, device)
    return [whole._replace(share=number / sum(images)) for number in images]
