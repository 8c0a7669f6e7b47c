from collections import Counter

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from src.zoo.dfine.assignment import Pairs, solve_assignments, unite_heads


def as_rows(pairs):
    return [tuple(int(v) for v in row) for row in zip(*pairs)]


def make_pairs(*rows):
    """Return pairs from rows of (head, image, query, target)."""
    return Pairs(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


# ---- assignments ----


@pytest.mark.parametrize("counts", [[3, 2], [0, 3], [1, 1, 1], [5, 0, 2]])
def test_assignment_of_each_head_and_image_is_the_cheapest(counts):
    rng = np.random.default_rng(0)
    costs, expected, start = (
        rng.random((2, len(counts), max(counts), 7)).astype(np.float32),
        [],
        np.cumsum(counts) - counts,
    )
    for head in range(2):
        for image, count in enumerate(counts):
            target, query = linear_sum_assignment(costs[head, image, :count])
            expected += [
                (head, image, int(q), int(t + start[image]))
                for q, t in zip(query, target)
            ]
    assert sorted(as_rows(solve_assignments(costs, counts))) == sorted(expected)


def test_with_more_targets_than_queries_every_query_gets_one():
    pairs = solve_assignments(
        np.random.default_rng(0).random((1, 1, 6, 4), np.float32), [6]
    )
    assert (
        sorted(pairs.query.tolist()) == [0, 1, 2, 3]
        and len(set(pairs.target.tolist())) == 4
    )


def test_padding_is_never_matched():
    costs = np.full((1, 2, 3, 4), 5.0, np.float32)
    costs[0, 1, 1:] = -100  # padding of the second image, which has one target
    assert as_rows(solve_assignments(costs, [3, 1]))[-1][3] == 3


@pytest.mark.parametrize("shape", [(0, 2, 0, 0), (2, 2, 0, 5)])
def test_without_targets_there_are_no_pairs(shape):
    pairs = solve_assignments(np.zeros(shape, np.float32), [0, 0])
    assert [(column.shape, column.dtype) for column in pairs] == [
        ((0,), np.int64)
    ] * 4


# ---- union ----


def reference_union(pairs):
    """Return (image, query, target): a query keeps its most frequent pair; ties by query, then target."""
    result = []
    for image in sorted(set(pairs.image.tolist())):
        counts = Counter(
            (q, t)
            for i, q, t in zip(
                pairs.image.tolist(),
                pairs.query.tolist(),
                pairs.target.tolist(),
            )
            if i == image
        )
        taken = set()
        for (query, target), _ in sorted(
            counts.items(), key=lambda item: (-item[1], *item[0])
        ):
            if query not in taken:
                taken.add(query)
                result.append((0, image, query, target))
    return sorted(result)


@pytest.mark.parametrize("seed", range(8))
def test_union_equals_its_definition(seed):
    rng = np.random.default_rng(seed)
    pairs = Pairs(*(rng.integers(0, high, 60) for high in (5, 3, 6, 4)))
    assert sorted(as_rows(unite_heads(pairs))) == reference_union(pairs)


def test_a_query_keeps_the_target_that_most_heads_gave_it():
    assert as_rows(
        unite_heads(make_pairs((0, 0, 4, 1), (1, 0, 4, 0), (2, 0, 4, 1)))
    ) == [(0, 0, 4, 1)]


@pytest.mark.parametrize("order", [1, -1])
def test_equal_counts_go_to_the_first_target_in_whatever_order_heads_come(
    order,
):
    rows = [(0, 0, 4, 2), (1, 0, 4, 1), (2, 0, 4, 3)][::order]
    assert as_rows(unite_heads(make_pairs(*rows))) == [(0, 0, 4, 1)]


def test_a_target_may_keep_several_queries():
    assert as_rows(unite_heads(make_pairs((0, 0, 4, 1), (1, 0, 2, 1)))) == [
        (0, 0, 2, 1),
        (0, 0, 4, 1),
    ]


def test_the_same_query_of_two_images_stays_apart():
    assert as_rows(unite_heads(make_pairs((0, 0, 4, 0), (0, 1, 4, 1)))) == [
        (0, 0, 4, 0),
        (0, 1, 4, 1),
    ]


def test_union_of_nothing_is_nothing():
    assert as_rows(unite_heads(make_pairs())) == []
