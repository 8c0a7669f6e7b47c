"""Training the runs of a study: order, resuming, interruption and failure. Trainings are imitated."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.cli.ablation.records import (
    COMPLETE,
    FAILED,
    INTERRUPTED,
    NOT_STARTED,
    RUNNING,
    read_outcome,
    read_record,
    state_of,
)
from src.cli.ablation.runs import in_order
from src.cli.ablation.training import Conditions, train_all, training_command
from src.runtime.files import locked
from tests.fixtures.ablation_plans import fake_trainer, runs, sides
from tests.fixtures.progress import wait_until
from tests.fixtures.slow import slow
from tests.fixtures.tiny import ROOT

LARGE = "optimizer.lr=0.002"


class Study:
    """The runs of a plan, a folder of results, and what was reported."""

    def __init__(self, folder, monkeypatch, behaviour=None, **changes):
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.results = folder / "results"
        self.runs = list(in_order(sides(folder, **changes)))
        self.lines = []
        monkeypatch.setattr("src.cli.ablation.training.POLL_SECONDS", 0.02)
        self.behave(behaviour)

    def behave(self, behaviour) -> None:
        self.trainer = fake_trainer(self.folder, self.monkeypatch, behaviour)

    def train(self, **conditions) -> list:
        settings = {"variables": {}, "trainer": self.trainer, **conditions}
        self.lines.clear()
        given = Conditions(self.results, **settings)
        return train_all(self.runs, given, self.lines.append)

    def states(self) -> list[str]:
        return [state_of(run, self.results) for run in self.runs]


def test_all_runs_are_trained_and_recorded(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, {LARGE: {"AP": 0.6}})
    assert study.states() == [NOT_STARTED] * 4
    assert study.train() == []
    assert study.states() == [COMPLETE] * 4
    best = [read_outcome(run, study.results).best for run in study.runs]
    assert [epoch.ap for epoch in best] == [0.5, 0.6, 0.51, 0.61]
    assert [epoch.number for epoch in best] == [2, 2, 2, 2]


def test_a_complete_run_is_not_repeated(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch)
    study.train()
    study.train()
    assert study.lines == []


def test_the_trainer_gets_seed_folder_and_settings(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch)
    study.train()
    folder = study.runs[3].folder(study.results)
    words = json.loads((folder / "words.json").read_text())
    assert words[0] == "-c"
    assert words[2:] == [
        "--seed=1",
        "--output-dir",
        str(folder),
        "-r",
        "auto",
        "-u",
        "report=False",
        LARGE,
    ]


def test_runs_are_started_with_the_trainer_of_this_project(tmp_path):
    command = training_command(runs(tmp_path)[0], Conditions(tmp_path, {}))
    assert command[1].endswith("/train.py") and os.path.exists(command[1])


def test_what_a_complete_run_would_resume_from_is_removed(
    tmp_path, monkeypatch
):
    study = Study(tmp_path, monkeypatch)
    study.train()
    names = set(os.listdir(study.runs[0].folder(study.results)))
    assert "best.pth" in names and "last.pth" not in names


def test_a_run_that_fails_is_reported_and_does_not_stop_the_others(
    tmp_path, monkeypatch
):
    study = Study(tmp_path, monkeypatch, {LARGE: {"fail": True}})
    failed = study.train()
    assert [run.seed for run in failed] == [0, 1]
    assert study.states() == [COMPLETE, FAILED, COMPLETE, FAILED]
    reports = [line for line in study.lines if line.startswith("failed")]
    assert "error[3]: no images (exit code 3; " in reports[0]


def test_a_run_that_failed_is_tried_again(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, {LARGE: {"fail": True}})
    study.train()
    study.behave({})
    assert study.train() == []
    assert study.states() == [COMPLETE] * 4
    assert len(read_record(study.runs[1], study.results).parts) == 2


COMMAND = """
import sys
from src.cli import ablate
results, plan, *ablate.TRAINER = sys.argv[1:]
ablate.main([plan, "--results", results])
"""


def started(study: Study) -> subprocess.Popen:
    """Start the command in a process of its own, and wait until its second run waits for a signal."""
    words = [study.results, study.folder / "lr.yml", *study.trainer]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    ready = study.runs[1].folder(study.results) / "ready"
    wait_until(
        lambda: ready.exists() and bool(ready.read_text()),
        process.pid,
        lambda: "no run waits for a signal",
    )
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_a_signal_interrupts_runs_so_that_they_resume(
    tmp_path, monkeypatch, number
):
    study = Study(tmp_path, monkeypatch, {LARGE: {"waits": True}})
    process = started(study)
    process.send_signal(number)
    said, _ = process.communicate()
    assert f"{number.name}; runs that save their state: 1" in said
    assert "interrupted: " in said and "failed: " not in said
    assert study.states() == [COMPLETE, INTERRUPTED, NOT_STARTED, NOT_STARTED]
    assert read_outcome(study.runs[1], study.results) is None
    study.behave({})
    study.train()
    assert study.lines[0].startswith("resumed: ")
    assert study.states() == [COMPLETE] * 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_a_run_saves_its_state_when_the_command_is_killed(
    tmp_path, monkeypatch
):
    study = Study(tmp_path, monkeypatch, {LARGE: {"waits": True}})
    process = started(study)
    ready = study.runs[1].folder(study.results) / "ready"
    process.kill()
    process.communicate()
    trainer = Path("/proc") / ready.read_text()
    wait_until(
        lambda: not trainer.exists(), os.getpid(), lambda: "the run goes on"
    )
    assert study.states()[:2] == [COMPLETE, INTERRUPTED]
    study.behave({})
    study.train()
    assert study.states() == [COMPLETE] * 4
    assert read_record(study.runs[1], study.results).lost_minutes


@pytest.mark.slow
def test_cpu_minutes_of_all_parts_are_added(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, {LARGE: {"waits": True}})
    process = started(study)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    study.behave({})
    study.train()
    record = read_record(study.runs[1], study.results)
    minutes = [part.cpu_minutes for part in record.parts]
    assert len(minutes) == 2 and min(minutes) > 0
    assert record.cpu_minutes == pytest.approx(sum(minutes))
    assert [part.exit_code for part in record.parts] == [75, 0]


def test_runs_are_interrupted_when_time_is_over(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, {LARGE: {"waits": True}})
    study.train(minutes=1.5 / 60)
    assert study.states() == [COMPLETE, INTERRUPTED, NOT_STARTED, NOT_STARTED]
    assert any("0.025 minutes are over" in line for line in study.lines)


def test_nothing_starts_when_there_is_no_time(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch)
    study.train(minutes=0)
    assert study.states() == [NOT_STARTED] * 4


def test_a_process_that_was_killed_with_the_command_leaves_unknown_minutes(
    tmp_path, monkeypatch
):
    study = Study(tmp_path, monkeypatch)
    study.train()
    run = study.runs[0]
    path = run.folder(study.results).with_name("seed0.json")
    content = json.loads(path.read_text())
    content["is_complete"] = False
    content["parts"][0]["cpu_minutes"] = None
    path.write_text(json.dumps(content))
    study.train()
    assert read_record(run, study.results).lost_minutes
    assert study.states()[0] == COMPLETE


def test_several_runs_are_trained_at_a_time(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, {LARGE: {"waits": True}})
    study.train(jobs=2, minutes=2 / 60)
    # the first run of the large rate waits while the next ones start
    assert study.states() == [COMPLETE, INTERRUPTED, COMPLETE, INTERRUPTED]


def test_a_run_that_another_process_trains_is_left_out(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch)
    folder = study.runs[0].folder(study.results)
    folder.mkdir(parents=True)
    monkeypatch.setattr("src.runtime.files._held", set())
    with locked(folder):
        monkeypatch.setattr("src.runtime.files._held", set())
        study.train()
        assert study.states() == [RUNNING, COMPLETE, COMPLETE, COMPLETE]
    assert study.lines[0].endswith("is trained by another process")


TEACHER = {
    "teachers": {"big": {"settings": ["optimizer.lr=0.003"]}},
    "variants": {
        "small": None,
        "large": {"teacher": "big", "settings": ["tuning=$TEACHER", LARGE]},
    },
}


def test_a_student_starts_after_its_teacher(tmp_path, monkeypatch):
    study = Study(tmp_path, monkeypatch, **TEACHER)
    study.train(jobs=4)
    assert study.states() == [COMPLETE] * 5
    ended = study.lines.index(
        next(
            line
            for line in study.lines
            if line.startswith(f"complete: {study.runs[1].group}")
        )
    )
    started = [
        line for line in study.lines if line == "started: " + name(study, 2)
    ]
    assert study.lines.index(started[0]) > ended


def name(study: Study, number: int) -> str:
    run = study.runs[number]
    return f"{run.group}, seed {run.seed}"


def test_students_of_a_teacher_that_failed_are_left_out(tmp_path, monkeypatch):
    behaviour = {"optimizer.lr=0.003": {"fail": True}}
    study = Study(tmp_path, monkeypatch, behaviour, **TEACHER)
    failed = study.train()
    assert [run.teacher for run in failed] == [None]
    expected = [COMPLETE, FAILED, NOT_STARTED, COMPLETE, NOT_STARTED]
    assert study.states() == expected
    assert (
        f"left out: {name(study, 2)} needs its teacher, which is missing"
        in (study.lines)
    )
