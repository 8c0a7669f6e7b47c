"""Means, paired differences and verdicts."""

import math
import statistics

import pytest

from src.cli.ablation.comparison import (
    BETTER,
    UNDECIDED,
    WORSE,
    paired_difference,
    spread,
    summarize,
)
from src.cli.ablation.records import Epoch, Outcome, Record
from src.core.errors import DataError


def outcome(*scores: float, steps: int | None = 10) -> Outcome:
    epochs = []
    for number, score in enumerate(scores, 1):
        total = None if steps is None else steps * number
        epochs.append(Epoch(number, score, score + 0.1, 1.0, total))
    return Outcome(Record(is_complete=True), epochs)


def verdict(*differences: float) -> str:
    baseline = dict.fromkeys(range(len(differences)), 0.5)
    variant = {seed: 0.5 + value for seed, value in enumerate(differences)}
    return paired_difference(variant, baseline).verdict


def test_the_standard_error_is_that_of_paired_differences():
    found = paired_difference(
        {0: 0.6, 1: 0.8, 2: 0.7}, {0: 0.5, 1: 0.6, 2: 0.7}
    )
    differences = [0.1, 0.2, 0.0]
    assert found.mean == pytest.approx(0.1)
    expected = statistics.stdev(differences) / math.sqrt(3)
    assert found.error == pytest.approx(expected)


def test_only_seeds_of_both_sides_are_paired():
    found = paired_difference({0: 0.6, 1: 0.8}, {1: 0.5, 2: 0.1})
    assert found.seeds == (1,)
    assert found.mean == pytest.approx(0.3)
    assert paired_difference({0: 0.6}, {1: 0.5}) is None


def test_one_seed_has_no_error_and_decides_nothing():
    found = paired_difference({0: 0.9}, {0: 0.1})
    assert found.error is None
    assert found.verdict == UNDECIDED


@pytest.mark.parametrize(
    "differences, expected",
    [
        ((0.10, 0.11, 0.12), BETTER),
        ((-0.10, -0.11, -0.12), WORSE),
        # a mean of 0.1 with errors of 0.0497 and 0.0502
        ((0.014, 0.1, 0.186), BETTER),
        ((0.013, 0.1, 0.187), UNDECIDED),
        ((0.0, 0.0, 0.0), UNDECIDED),
    ],
)
def test_more_than_two_standard_errors_decide(differences, expected):
    assert verdict(*differences) == expected


def test_the_spread_is_the_sample_standard_deviation():
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert spread([1.0]) is None


def compare(variant: Outcome, **changes):
    outcomes = {"old": {0: outcome(0.1, 0.3, 0.2)}, "new": {0: variant}}
    settings = {"equal_steps": True, "where": "plan.yml, task a"} | changes
    return summarize(outcomes, "old", **settings)


def test_the_score_of_a_run_is_its_best_ap():
    old, new = compare(outcome(0.6, 0.5, 0.4))
    assert old.scores == {0: 0.3}
    assert old.difference is None
    assert new.difference.mean == pytest.approx(0.3)


def test_the_first_of_equally_good_epochs_counts():
    assert outcome(0.2, 0.3, 0.3).best.number == 2


def test_runs_of_different_lengths_are_not_compared():
    with pytest.raises(DataError) as caught:
        compare(outcome(0.5, 0.6))
    assert str(caught.value).startswith(
        "plan.yml, task a: runs have different numbers of optimizer steps: 30 (old with seed 0), 20 (new "
        "with seed 0); "
    )


def test_runs_of_different_lengths_are_compared_if_the_plan_allows_it():
    assert compare(outcome(0.5, 0.6), equal_steps=False)[1].difference


def test_runs_without_a_number_of_steps_are_compared():
    assert compare(outcome(0.5, 0.6, steps=None))[1].difference
