"""Groups of tensors for `torch._foreach_*` functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Copies(NamedTuple):
    """Pairs of tensors of one data type."""

    targets: list[Tensor]
    sources: list[Tensor]


def group_by_dtype(pairs: Iterable[tuple[Tensor, Tensor]]) -> list[Copies]:
    """Group pairs of (target, source) by the data type of the target.

    A `torch._foreach_*` function needs a few kernels for tensors of one type, but one per tensor for several.
    """
    groups: dict[torch.dtype, Copies] = {}
    for target, source in pairs:
        group = groups.setdefault(target.dtype, Copies([], []))
        group.targets.append(target)
        group.sources.append(source)
    return list(groups.values())
