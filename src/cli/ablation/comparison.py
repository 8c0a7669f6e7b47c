"""Compare the variants of a plan: means over seeds, and differences between runs of the same seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...core.errors import DataError
from .records import Outcome

BETTER = "better"
WORSE = "worse"
UNDECIDED = "undecided"

ERRORS_NEEDED = 2.0
"""A difference decides if it is larger than this many standard errors."""


@dataclass(frozen=True)
class Difference:
    """A variant minus the baseline, paired by seed."""

    seeds: tuple[int, ...]
    """Seeds that are complete on both sides."""
    mean: float
    error: float | None
    """Standard error of the mean; None with fewer than two seeds."""

    @property
    def verdict(self) -> str:
        """Return whether the variant is better or worse, or that this is undecided."""
        if self.error is None or self.mean == 0:
            return UNDECIDED
        if abs(self.mean) <= ERRORS_NEEDED * self.error:
            return UNDECIDED
        return BETTER if self.mean > 0 else WORSE


@dataclass(frozen=True)
class Summary:
    """The results of a variant on one task."""

    name: str
    outcomes: Mapping[int, Outcome]
    """Complete runs by seed."""
    difference: Difference | None
    """None for the baseline, and without a common seed."""

    @property
    def scores(self) -> dict[int, float]:
        """Best AP of each run by seed."""
        return {
            seed: outcome.best.ap for seed, outcome in self.outcomes.items()
        }


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, or None for fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def paired_difference(
    variant: Mapping[int, float], baseline: Mapping[int, float]
) -> Difference | None:
    """Return the mean difference between scores of the same seed, with its standard error.

    The standard error is the sample standard deviation of the differences, divided by the square root of
    their number.

    Args:
        variant: scores by seed.
        baseline: scores by seed.

    Returns:
        None if no seed is on both sides.

    Example:
        >>> paired_difference({0: 0.75, 1: 0.5}, {0: 0.5, 1: 0.5})
        Difference(seeds=(0, 1), mean=0.125, error=0.125)
    """
    seeds = tuple(sorted(set(variant) & set(baseline)))
    if not seeds:
        return None
    differences = [variant[seed] - baseline[seed] for seed in seeds]
    deviation = spread(differences)
    error = None
    if deviation is not None:
        error = deviation / math.sqrt(len(seeds))
    return Difference(seeds, statistics.mean(differences), error)


def summarize(
    outcomes: Mapping[str, Mapping[int, Outcome]],
    baseline: str,
    *,
    equal_steps: bool,
    where: str,
) -> list[Summary]:
    """Return the results of all variants on one task.

    Args:
        outcomes: complete runs by variant and seed.
        baseline: name of the variant with which the others are compared.
        equal_steps: require the same number of optimizer steps of all runs.
        where: plan and task, for messages.

    Raises:
        DataError: if `equal_steps` is set and the numbers differ.
    """
    if equal_steps:
        _refuse_unequal_steps(outcomes, where)
    scores = {
        name: {seed: run.best.ap for seed, run in runs.items()}
        for name, runs in outcomes.items()
    }
    found = []
    for name, runs in outcomes.items():
        difference = None
        if name != baseline:
            difference = paired_difference(scores[name], scores[baseline])
        found.append(Summary(name, runs, difference))
    return found


def _refuse_unequal_steps(
    outcomes: Mapping[str, Mapping[int, Outcome]], where: str
) -> None:
    steps: dict[int, str] = {}
    for name, runs in outcomes.items():
        for seed, run in runs.items():
            if run.last.steps is not None:
                steps.setdefault(run.last.steps, f"{name} with seed {seed}")
    if len(steps) > 1:
        listed = ", ".join(f"{number} ({run})" for number, run in steps.items())
        raise DataError(
            f"{where}: runs have different numbers of optimizer steps: {listed}; give all variants the same "
            "number, or set equal_steps: false in the plan"
        )
