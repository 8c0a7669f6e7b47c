"""Results of a plan as a Markdown table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .comparison import Summary, spread
from .plan import Plan, Task
from .records import Outcome, summary_of_parts

NOTE = (
    "AP is that of a run's best epoch on the validation images (`best.pth`), last AP that of its last epoch. "
    "Deviations are sample standard deviations. Differences are paired by seed, +- their standard error. "
    "A variant is better or worse if the difference is larger than two standard errors."
)


def markdown(
    plan: Plan, task: Task, summaries: Sequence[Summary], seeds: Sequence[int]
) -> str:
    """Return the table of a task, with a line about the runs below it.

    Args:
        plan: the plan.
        task: one of its tasks.
        summaries: results of all variants.
        seeds: seeds of the study; each has a column.
    """
    columns = ["variant", *(f"seed {seed}" for seed in seeds)]
    columns += ["mean AP", "deviation", "mean AP50", "mean last AP"]
    columns += ["difference", "verdict", "CPU minutes a run"]
    lines = [
        f"### {plan.name}, {task.title}",
        "",
        plan.question,
        "",
        _row(columns),
        _row(["---"] * len(columns)),
    ]
    lines += [_row(_cells(plan, summary, seeds)) for summary in summaries]
    lines += ["", *_notes(summaries, seeds)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(plan: Plan, summary: Summary, seeds: Sequence[int]) -> list[str]:
    name = summary.name
    if name == plan.baseline:
        name += " (baseline)"
    scores = summary.scores
    cells = [name]
    cells += [
        f"{scores[seed]:.3f}" if seed in scores else "-" for seed in seeds
    ]
    if not scores:
        return cells + ["-"] * 7
    runs = list(summary.outcomes.values())
    cells.append(_mean([run.best.ap for run in runs]))
    deviation = spread(list(scores.values()))
    cells.append("-" if deviation is None else f"{deviation:.3f}")
    cells.append(_mean([run.best.ap50 for run in runs]))
    cells.append(_mean([run.last.ap for run in runs]))
    cells += _difference(summary)
    minutes = statistics.mean(run.record.cpu_minutes for run in runs)
    at_least = any(run.record.lost_minutes for run in runs)
    cells.append(f"{'> ' if at_least else ''}{minutes:.1f}")
    return cells


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f}"


def _difference(summary: Summary) -> list[str]:
    """Return the cells of the difference and of the verdict."""
    difference = summary.difference
    if difference is None:
        return ["-", "-"]
    if difference.error is None:
        return [f"{difference.mean:+.3f}", difference.verdict]
    text = f"{difference.mean:+.3f} +- {difference.error:.3f}"
    return [text, difference.verdict]


def _notes(summaries: Sequence[Summary], seeds: Sequence[int]) -> list[str]:
    """Return the lines below the table: steps, commits, versions and missing runs."""
    outcomes = {}
    for summary in summaries:
        for seed, run in summary.outcomes.items():
            outcomes[summary.name, seed] = run
    missing = len(summaries) * len(seeds) - len(outcomes)
    lines = []
    if outcomes:
        lines.append(_origin(outcomes))
    if missing:
        lines.append(
            f"Not complete: {missing} of {len(summaries) * len(seeds)} runs."
        )
    return lines


def _origin(outcomes: Mapping[Any, Outcome]) -> str:
    facts = summary_of_parts(outcomes)
    commits = ", ".join(facts["commits"])
    steps = sorted({run.last.steps or 0 for run in outcomes.values()})
    text = ""
    if steps != [0]:
        counts = " or ".join(f"{number:,}" for number in steps)
        text = f"Optimizer steps: {counts}. "
    text += f"Commit: {commits}. torch {', '.join(facts['torch'])}. "
    text += f"Processor: {', '.join(facts['processors'])}."
    if len(facts["commits"]) > 1:
        text += " The runs are from different commits."
    return text


def as_json(
    plan: Plan, task: Task, summaries: Sequence[Summary]
) -> dict[str, Any]:
    """Return the results of a task as values for JSON."""
    variants = [_variant(plan, summary) for summary in summaries]
    return {
        "plan": plan.name,
        "question": plan.question,
        "task": task.name,
        "baseline": plan.baseline,
        "score": "best AP of the epochs",
        "variants": variants,
    }


def _variant(plan: Plan, summary: Summary) -> dict[str, Any]:
    runs = {}
    for seed, run in summary.outcomes.items():
        runs[str(seed)] = {
            "AP": run.best.ap,
            "AP50": run.best.ap50,
            "best_epoch": run.best.number,
            "last_AP": run.last.ap,
            "steps": run.last.steps,
            "cpu_minutes": round(run.record.cpu_minutes, 2),
            "commits": [part.commit for part in run.record.parts],
            "AP_by_epoch": [epoch.ap for epoch in run.epochs],
        }
    values = list(summary.scores.values())
    content: dict[str, Any] = {
        "name": summary.name,
        "is_baseline": summary.name == plan.baseline,
        "mean_AP": statistics.mean(values) if values else None,
        "deviation": spread(values),
        "runs": runs,
    }
    difference = summary.difference
    if difference is not None:
        content["difference"] = {
            "seeds": list(difference.seeds),
            "mean": difference.mean,
            "standard_error": difference.error,
            "verdict": difference.verdict,
        }
    return content
