"""Tables of studies: Markdown and JSON."""

import pytest

from src.cli.ablation.comparison import summarize
from src.cli.ablation.plan import load_plan
from src.cli.ablation.records import Epoch, Outcome, Part, Record
from src.cli.ablation.tables import as_json, markdown
from tests.fixtures.ablation_plans import write_plan


def outcome(score: float, commit: str = "abc", minutes: float | None = 6.0):
    part = Part(commit, "2.10", "EPYC", cpu_minutes=minutes, exit_code=0)
    epochs = [
        Epoch(1, score, score + 0.2, 2.0, 10),
        Epoch(2, score - 0.1, score, 1.0, 20),
    ]
    return Outcome(Record({}, [part], is_complete=True), epochs)


@pytest.fixture
def plan(tmp_path):
    return load_plan(write_plan(tmp_path))


def summaries(outcomes: dict) -> list:
    return summarize(outcomes, "small", equal_steps=True, where="")


def table(plan, outcomes: dict) -> list[str]:
    text = markdown(plan, plan.tasks["shapes"], summaries(outcomes), [0, 1])
    return text.splitlines()


BOTH = {
    "small": {0: outcome(0.5), 1: outcome(0.52)},
    "large": {0: outcome(0.6), 1: outcome(0.64)},
}


def test_the_table_has_scores_means_spread_and_verdict(plan):
    lines = table(plan, BOTH)
    assert lines[4] == (
        "| variant | seed 0 | seed 1 | mean AP | deviation | mean AP50 | mean last AP | difference | verdict "
        "| CPU minutes a run |"
    )
    assert lines[6:8] == [
        "| small (baseline) | 0.500 | 0.520 | 0.510 | 0.014 | 0.710 | 0.410 | - | - | 6.0 |",
        "| large | 0.600 | 0.640 | 0.620 | 0.028 | 0.820 | 0.520 | +0.110 +- 0.010 | better | 6.0 |",
    ]


def test_the_table_states_steps_commit_versions_and_processor(plan):
    assert table(plan, BOTH)[-1] == (
        "Optimizer steps: 20. Commit: abc. torch 2.10. Processor: EPYC."
    )


def test_a_table_of_several_commits_says_so(plan):
    mixed = {**BOTH, "large": {0: outcome(0.6, commit="def")}}
    text = "\n".join(table(plan, mixed))
    assert "Commit: abc, def." in text
    assert "The runs are from different commits." in text


def test_missing_runs_are_counted_and_decide_nothing(plan):
    lines = table(plan, {**BOTH, "large": {1: outcome(0.6)}})
    assert lines[7] == (
        "| large | - | 0.600 | 0.600 | - | 0.800 | 0.500 | +0.080 | undecided | 6.0 |"
    )
    assert lines[-1] == "Not complete: 1 of 4 runs."
    lines = table(plan, {**BOTH, "large": {}})
    assert lines[7] == "| large | - | - | - | - | - | - | - | - | - |"


def test_lost_cpu_minutes_are_marked(plan):
    lost = outcome(0.6, minutes=None)
    lines = table(plan, {**BOTH, "large": {0: outcome(0.6), 1: lost}})
    assert lines[7].endswith("| > 3.0 |")


def test_the_json_has_every_run_and_the_difference(plan):
    content = as_json(plan, plan.tasks["shapes"], summaries(BOTH))
    small, large = content["variants"]
    assert small["is_baseline"] and "difference" not in small
    assert large["runs"]["1"]["AP_by_epoch"] == pytest.approx([0.64, 0.54])
    assert large["runs"]["1"]["best_epoch"] == 1
    assert large["difference"]["verdict"] == "better"
    assert large["difference"]["standard_error"] == pytest.approx(0.01)
