"""Assignments between queries and targets on the CPU: solve them, and unite those of several heads.

The pairs of all heads and images are columns of flat arrays, so that no loop over pairs is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Pairs(NamedTuple):
    """Matched pairs; each field is an array `[M]` of int64."""

    head: np.ndarray
    """Index of the prediction head; zero in a union of heads."""
    image: np.ndarray
    """Index of the image in the batch."""
    query: np.ndarray
    """Index of the query in its image."""
    target: np.ndarray
    """Position in the concatenated targets of the whole batch."""


def no_pairs() -> Pairs:
    """Return arrays without pairs."""
    empty = np.zeros(0, np.int64)
    return Pairs(empty, empty, empty, empty)


def solve_assignments(costs: np.ndarray, counts: list[int]) -> Pairs:
    """Match queries to targets with minimum total cost, for every head and image.

    Args:
        costs: finite costs, `[heads, B, T, Q]`; T is padded.
        counts: number of targets of each of the B images, T_i.

    Returns:
        min(Q, T_i) pairs for each head and image i, ordered by head, then by image.
    """
    from scipy.optimize import linear_sum_assignment  # here: its import is slow

    parts = []
    ends = np.cumsum(counts)
    for head, of_head in enumerate(costs):
        for image, (cost, count, end) in enumerate(zip(of_head, counts, ends)):
            if not count:
                continue
            target, query = linear_sum_assignment(cost[:count])
            heads = np.full_like(query, head)
            images = np.full_like(query, image)
            parts.append(
                np.stack([heads, images, query, target + (end - count)])
            )
    if not parts:
        return no_pairs()
    return Pairs(*np.concatenate(parts, axis=1).astype(np.int64, copy=False))


def unite_heads(pairs: Pairs) -> Pairs:
    """Merge the matchings of several heads: a query keeps the target that most heads gave it.

    If several targets have equal counts, the query keeps the first of them, so that the result does not
    depend on the sorting algorithm (D-FINE's "GO" union; docs/decisions/0004). A target may keep several
    queries.
    """
    queries = int(pairs.query.max(initial=0)) + 1
    targets = int(pairs.target.max(initial=0)) + 1
    owner = pairs.image * queries + pairs.query  # a query of an image
    keys, votes = np.unique(owner * targets + pairs.target, return_counts=True)
    owner = keys // targets
    target = keys % targets
    order = np.lexsort((target, -votes, owner))
    owner = owner[order]
    target = target[order]
    first = np.diff(owner, prepend=-1) != 0
    owner = owner[first]
    target = target[first]
    return Pairs(
        np.zeros_like(owner), owner // queries, owner % queries, target
    )
