"""Assignments between queries and targets, on the host: solving them, and uniting those of several heads.

All pairs of all heads and images lie in flat arrays, so that nothing here walks over pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment


class Pairs(NamedTuple):
    """Matched pairs; all arrays `[M]` int64."""

    head: np.ndarray
    """Prediction head of the pair; zeros for a union."""
    image: np.ndarray
    query: np.ndarray
    target: np.ndarray
    """Position in the concatenated targets of the whole batch."""


def solve_assignments(costs: np.ndarray, counts: list[int]) -> Pairs:
    """Match queries to targets with minimum total cost, for every head and image.

    Args:
        costs: `[heads, B, T, Q]`, finite; T is padded.
        counts: number of targets of each of the B images.

    Returns:
        min(Q, T_i) pairs for each head and image i, in the order of heads, then images.
    """
    parts = []
    ends = np.cumsum(counts)
    for head, of_head in enumerate(costs):
        for image, (cost, count, end) in enumerate(zip(of_head, counts, ends)):
            if count:
                target, query = linear_sum_assignment(cost[:count])
                parts.append(
                    (
                        np.full_like(query, head),
                        np.full_like(query, image),
                        query,
                        target + (end - count),
                    )
                )
    if not parts:
        return Pairs(*[np.zeros(0, np.int64)] * 4)
    return Pairs(
        *(np.concatenate(column).astype(np.int64, copy=False) for column in zip(*parts))
    )


def unite_heads(pairs: Pairs) -> Pairs:
    """Merge the matchings of several heads: a query keeps the target that most heads gave it.

    Equal counts go to the target that comes first, whatever the sort (D-FINE's "GO" union;
    docs/decisions/0004). A target may keep several queries.
    """
    queries = int(pairs.query.max(initial=0)) + 1
    targets = int(pairs.target.max(initial=0)) + 1
    owners, votes = np.unique(
        (pairs.image * queries + pairs.query) * targets + pairs.target,
        return_counts=True,
    )
    owner, target = (
        owners // targets,
        owners % targets,
    )  # an owner is a query of an image
    order = np.lexsort((target, -votes, owner))
    owner = owner[order]
    target = target[order]
    first = np.diff(owner, prepend=-1) != 0
    owner = owner[first]
    target = target[first]
    return Pairs(np.zeros_like(owner), owner // queries, owner % queries, target)
