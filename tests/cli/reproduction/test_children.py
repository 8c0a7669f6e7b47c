"""Commands of steps: their words, and what is reported about their end."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from src.cli import trainer
from src.cli.reproduction import children
from src.cli.reproduction.children import (
    StepFailed,
    doctor_command,
    evaluation_command,
    run_step,
    training_command,
)
from src.cli.reproduction.job import Job, find_model
from src.core.errors import Preempted
from tests.fixtures.golden import ROOT
from tests.fixtures.progress import wait_until

JOB = Job(
    find_model("dfine_n_coco"),
    ("epochs=1", "use_amp=True"),
    Path("results"),
    processes=2,
    seed=3,
)


def test_training_and_evaluation_get_the_same_settings():
    for command, words in (
        (training_command(JOB), {"-r", "auto"}),
        (evaluation_command(JOB), {"--test-only", "results/run/best.pth"}),
    ):
        script = command.index(
            next(w for w in command if w.endswith("train.py"))
        )
        assert "--nproc_per_node=2" in command[:script]
        assert words <= set(command[script:])
        arguments = trainer.parse_arguments(command[script + 1 :])
        assert arguments.config.endswith("dfine_hgnetv2_n_coco.yml")
        assert arguments.output_dir == "results/run"
        assert arguments.seed == 3
        assert arguments.update == ["epochs=1", "use_amp=True"]


def test_one_process_needs_no_launcher():
    command = doctor_command(
        JOB.__class__(JOB.entry, (), JOB.folder, quick=True)
    )
    assert command[0] == sys.executable
    assert command[1].endswith("tools/doctor.py")
    assert "--quick" in command and "-u" not in command


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-c", code, *words]


def test_a_step_that_fails_reports_what_its_command_reported(tmp_path):
    code = "import sys; sys.exit(1)"  # as torchrun does
    status = {"exit_code": 3, "message": "no labels"}
    (tmp_path / "run_status.json").write_text(json.dumps(status))
    with pytest.raises(
        StepFailed, match="the training has failed: no labels"
    ) as end:
        run_step("training", python(code, "--output-dir", str(tmp_path)))
    assert end.value.exit_code == 3


def test_the_failed_checks_of_the_doctor_are_named(tmp_path):
    report = tmp_path / "doctor.json"
    checks = [
        {"name": "memory", "status": "failed", "text": "out of memory"},
        {"name": "GPUs", "status": "ok", "text": "two"},
    ]
    report.write_text(json.dumps({"exit_code": 6, "checks": checks}))
    command = python("import sys; sys.exit(1)", "--report", str(report))
    with pytest.raises(
        StepFailed, match="failed: memory: out of memory$"
    ) as end:
        run_step("check of the machine", command)
    assert end.value.exit_code == 6


def test_a_killed_command_is_reported_with_its_signal():
    code = "import os; os.kill(os.getpid(), 9)"
    with pytest.raises(StepFailed, match="it was ended by SIGKILL") as end:
        run_step("training", python(code))
    assert end.value.exit_code == 137


def test_a_preempted_run_continues_with_the_same_command(tmp_path):
    status = {"exit_code": 75, "message": "stopped by SIGUSR1"}
    (tmp_path / "run_status.json").write_text(json.dumps(status))
    command = python("import sys; sys.exit(1)", "--output-dir", str(tmp_path))
    with pytest.raises(
        Preempted, match="the same command continues from there"
    ):
        run_step("training", command)


PARENT = """
import signal, sys
from src.cli.launch import run_child
before = signal.getsignal(signal.SIGTERM)
ended = run_child([sys.executable, "-c", *sys.argv[1:]])
print(ended.code, ended.stopped_by.name)
print(signal.getsignal(signal.SIGTERM) == before)
"""
CHILD = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
Path(sys.argv[1]).touch()
time.sleep(600)
"""


def test_a_signal_is_passed_on_and_its_handler_restored(tmp_path):
    ready = tmp_path / "ready"
    with subprocess.Popen(
        python(PARENT, CHILD, str(ready)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        wait_until(ready.exists, parent.pid, lambda: "the child has no handler")
        parent.send_signal(signal.SIGTERM)
        output, _ = parent.communicate()
    assert output.splitlines() == ["75 SIGTERM", "True"]


def test_a_signal_during_a_step_ends_the_command(monkeypatch):
    ended = children.run_child(python(""))._replace(stopped_by=signal.SIGINT)
    monkeypatch.setattr(children, "run_child", lambda _: ended)
    with pytest.raises(Preempted, match="SIGINT during the evaluation"):
        run_step("evaluation", [])
