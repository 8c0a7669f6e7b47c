"""One command measures all parts in processes of their own, and prints one table."""

import json
import os
import sys
from dataclasses import asdict

import pytest

from src.cli.everything import command
from src.cli.everything.figures import (
    PER_SECOND,
    Figure,
    least_cpu_seconds,
)
from src.core.errors import ResourceError
from tests.fixtures.run_here import call_here, run_here

RATIO = Figure(1, "a model", 0.7, "of a bare ViT-S/16", target=0.75, seconds=2)


@pytest.fixture
def answers(monkeypatch):
    """Answers of the processes by the title of what they measure, and the tasks that they were given."""
    tasks = {}

    def answer(_, name, title, folder, arguments, environment):
        tasks[title] = (folder, arguments)
        figure = asdict(RATIO) | {"who": title}
        return {"part": name, "yardstick": 0.5, "figures": [figure]}

    monkeypatch.setattr(command, "_answer", answer)
    return tasks


def measure(*arguments):
    """Run the command in this process."""
    return call_here(command.main, "everything.py", *arguments)


def test_the_table_has_a_row_for_each_figure_with_its_target(answers):
    lines = measure("--only", "engines", "scoring").out.splitlines()
    rows = [line for line in lines if line.startswith("| 1 ")]
    assert rows == [
        "| 1 | a model | engines | 0.7 of a bare ViT-S/16 | 4 | at most 0.75 | yes |",
        "| 1 | a model | scoring | 0.7 of a bare ViT-S/16 | 4 | at most 0.75 | yes |",
    ]
    assert any(line.startswith("processor: ") for line in lines)
    assert "yardstick: 500.0 to 500.0 ms" in lines


def test_a_peer_is_measured_after_the_own_part_in_the_same_folder(answers):
    measure("--only", "photos", "--peer", f"rfdetr={sys.executable}")
    assert list(answers) == ["photos", "photos of rfdetr"]
    own, peer = (folder for folder, _ in answers.values())
    assert own == peer


def test_the_figures_can_be_written_as_json(answers, tmp_path):
    file = tmp_path / "figures.json"
    measure("--only", "start", "--json", file)
    part = json.loads(file.read_text())["parts"][0]
    assert Figure(**part["figures"][0]).work == "a model"


def test_a_part_that_fails_is_named(tmp_path):
    arguments = command.make_parser().parse_args([])
    program = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(ResourceError, match="measuring start failed .*code 3"):
        command._answer(
            program, "start", "start", tmp_path, arguments, os.environ
        )


def test_a_part_runs_on_one_thread_and_returns_its_figures(
    tmp_path, monkeypatch
):
    module = tmp_path / "one_figure.py"
    module.write_text(
        "import json, os, sys, pathlib\n"
        "task = json.loads(sys.stdin.read())\n"
        "value = {'threads': os.environ['OMP_NUM_THREADS'], 'part': task['part']}\n"
        "pathlib.Path(task['result']).write_text(json.dumps(value))\n"
    )
    arguments = command.make_parser().parse_args([])
    environment = os.environ | command.ONE_THREAD
    program = [sys.executable, str(module)]
    found = command._answer(
        program, "start", "start", tmp_path, arguments, environment
    )
    assert found == {"threads": "1", "part": "start"}


def test_an_unknown_peer_is_refused_with_the_known_ones():
    result = run_here("tools/benchmark/everything.py", "--peer", "other=python")
    assert result.code == 2
    assert "ultralytics, rfdetr, hotcoco" in result.err


def test_a_peer_without_an_interpreter_is_refused(tmp_path):
    peer = f"rfdetr={tmp_path / 'python'}"
    result = run_here("tools/benchmark/everything.py", "--peer", peer)
    assert result.code == 2
    assert "expected the Python interpreter" in result.err


def test_a_data_folder_without_labels_is_refused(tmp_path):
    result = run_here("tools/benchmark/everything.py", "--data", str(tmp_path))
    assert result.code == 3
    assert "has no images" in result.err


def test_a_lower_limit_is_met_from_above():
    figure = Figure(2, "photos", 61.0, PER_SECOND, target=60, at_least=True)
    assert figure.is_met
    assert figure.cpu_seconds == pytest.approx(1 / 61)
    slower = Figure(2, "photos", 59.0, PER_SECOND, target=60, at_least=True)
    assert slower.is_met is False
    assert Figure(2, "photos", 59.0, PER_SECOND).is_met is None


def test_works_take_turns_and_the_warm_up_does_not_count():
    order = []
    works = {name: (lambda name=name: order.append(name)) for name in "ab"}
    seconds = least_cpu_seconds(works, repeats=2, warmup=1)
    assert order == ["a", "b"] * 3
    assert all(0 <= value < float("inf") for value in seconds.values())
