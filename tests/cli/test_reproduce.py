"""`tools/reproduce.py` from the first check to the row of the table, on a small set in COCO's layout."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from src.cli import reproduce
from src.cli.launch import ChildEnded
from src.cli.reproduction import children
from src.core.coco_metrics import METRICS
from src.runtime.files import LOCK
from src.solver.writers import LOG_FILE
from tests.fixtures.coco_layout import write_coco_layout
from tests.fixtures.commands import read_log
from tests.fixtures.progress import wait_until
from tests.fixtures.reproduction import (
    MODEL,
    UPDATES,
    Children,
    reproduce_here,
)
from tests.fixtures.run_here import call_here
from tests.fixtures.tiny import ROOT, SyntheticData

STEPS = ["doctor.py", "train.py", "train.py --test-only"]


@pytest.fixture
def started(tmp_path, monkeypatch) -> Children:
    """An empty current folder, in which commands of steps run in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    started = Children()
    monkeypatch.setattr(children, "run_child", started)
    return started


@pytest.fixture
def coco(tmp_path, tiny_data: SyntheticData) -> Path:
    return write_coco_layout(tmp_path / "COCO", tiny_data)


def refused(*words: str) -> tuple[int, str]:
    ended = call_here(lambda: reproduce.main(words), "tools/reproduce.py")
    return ended.code, ended.err


def test_a_model_is_checked_trained_and_evaluated_and_a_second_call_prints_the_row_again(
    started, coco
):
    first = reproduce_here(coco, "--epochs", "1")
    assert first.code == 0, first.err
    assert started.started == STEPS
    for number, title in enumerate(
        ("doctor", "data", "start weights", "training", "evaluation", "result"),
        1,
    ):
        assert f"== {number}/6 {title}" in first.out
    folder = Path("runs/coco", f"{MODEL}_epochs1")
    result = json.loads((folder / "result.json").read_text())
    assert result["model"] == MODEL
    assert (result["epochs"], result["recipe_epochs"]) == (1, 80)
    assert result["images"] == {"train": 24, "val": 8}
    assert result["is_coco_2017"] is False
    assert result["settings"] == UPDATES
    assert result["total_batch_size"] == 8
    assert result["input"] == [64, 64]
    evaluated = json.loads((folder / "run/eval.json").read_text())
    assert result["metrics"] == {name: evaluated[name] for name in METRICS}
    (session,) = result["sessions"]
    assert session["gpus"] == [] and session["processes"] == 1
    assert result["commit"] == session["commit"]
    row = (folder / "result.txt").read_text().splitlines()[-1]
    assert row == result["row"]
    assert row in first.out.splitlines()
    assert "not COCO 2017" in row and "1 of 80 epochs" in row
    assert "so AP on this set is not AP on COCO" in first.out

    second = reproduce_here(coco, "--epochs", "1")
    assert second.code == 0, second.err
    assert started.started == STEPS
    assert second.out.count("already done") == 5
    assert row in second.out.splitlines()


def test_a_stopped_training_continues_with_the_training(started, coco):
    def stop(name):
        if name == "train.py":
            return ChildEnded(75, signal.SIGTERM)
        return None

    started.before = stop
    first = reproduce_here(coco, "--epochs", "1")
    assert first.code == 75
    assert (
        "SIGTERM during the training; the same command continues from there"
        in first.err
    )
    started.before = lambda name: None
    second = reproduce_here(coco, "--epochs", "1")
    assert second.code == 0, second.err
    assert started.started == [*STEPS[:2], *STEPS[1:]]
    assert second.out.count("already done") == 3


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_ends_the_command_with_its_code(step, started, coco):
    def fail(name):
        if name == step:
            return ChildEnded(6, None)
        return ChildEnded(0, None) if name == "doctor.py" else None

    started.before = fail
    ended = reproduce_here(coco, "--epochs", "1")
    assert ended.code == 6
    assert "has failed: its last lines give the reason" in ended.err
    assert started.started[-1] == step


def test_a_training_with_other_settings_is_not_continued(started, coco):
    started.before = lambda name: ChildEnded(
        75 if name == "train.py" else 0, None
    )
    assert reproduce_here(coco, "--epochs", "1").code == 75
    other = reproduce_here(coco, "--epochs", "1", "--seed", "3")
    assert other.code == 2
    assert "other settings: seed was 0, is 3 (it was started with -u" in (
        other.err
    )
    assert len(started.started) == 2
    workers = [*UPDATES, "train_dataloader.num_workers=1"]
    same = reproduce_here(coco, "--epochs", "1", updates=workers)
    assert same.code == 75  # what does not affect results may change


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Lock a folder as another process would: a lock belongs to the opened file, not to the process."""
    folder.mkdir(parents=True)
    with (folder / LOCK).open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_training_that_still_runs_is_not_disturbed(started, coco):
    run = Path("runs/coco", MODEL, "run")
    with in_use(run):
        ended = reproduce_here(coco)
    assert ended.code == 2
    assert f"the training in {run} is still running" in ended.err
    assert not started.started


def test_two_calls_do_not_share_a_folder(started, coco):
    folder = Path("runs/coco", MODEL)
    with in_use(folder):
        ended = reproduce_here(coco)
    assert ended.code == 2
    assert f"{folder} is in use by process 4711" in ended.err
    assert not started.started


def test_missing_data_is_named_before_any_work(started, coco):
    (coco / "annotations/instances_val2017.json").unlink()
    ended = reproduce_here(coco)
    assert ended.code == 3
    assert (
        "instances_val2017.json is missing or empty" in ended.err
        and "annotations_trainval2017.zip" in ended.err
    )
    assert not started.started and not Path("runs").exists()


def test_missing_weights_are_named_before_any_work(started, coco):
    updates = [item for item in UPDATES if "pretrained" not in item]
    ended = reproduce_here(coco, updates=updates)
    assert ended.code == 4
    assert (
        "the start weights weights/dinov3_vits16_pretrain_lvd1689m-08c60483.pth do not exist"
        in ended.err
    )
    assert "-u DINOv3Backbone.checkpoint_path=FILE" in ended.err
    assert not started.started and not Path("runs").exists()


def test_an_unknown_model_is_refused_with_similar_names(started):
    code, message = refused("dfine_dinov3_s_cocco", "-d", "cpu")
    assert code == 2
    assert (
        "dfine_dinov3_s_cocco is not a model of configs/models.yml; did you mean"
        in message
    )
    assert MODEL in message


def test_without_a_gpu_the_cpu_must_be_asked_for(started, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, message = refused(MODEL)
    assert code == 2
    assert "torch finds no GPU" in message and "pass -d cpu" in message


def test_fewer_than_one_epoch_is_refused(started):
    code, message = refused(MODEL, "--epochs", "0")
    assert code == 2
    assert "--epochs is 0, expected at least 1" in message


def test_the_installed_package_says_that_a_clone_is_needed(
    started, monkeypatch
):
    monkeypatch.setattr("src.core.commands.is_installed", lambda: True)
    code, message = refused(MODEL, "-d", "cpu")
    assert code == 2
    assert "works only in a clone of the repository" in message


def test_results_of_others_are_not_replaced(started, coco):
    folder = Path("runs/coco", MODEL)
    folder.mkdir(parents=True)
    (folder / "result.txt").write_text("my notes\n")
    ended = reproduce_here(coco)
    assert ended.code == 2
    assert "this project did not write it" in ended.err
    assert (folder / "result.txt").read_text() == "my notes\n"
    assert not started.started


@pytest.mark.slow
def test_processes_that_are_stopped_and_killed_continue_to_the_end(
    tmp_path, coco
):
    words = [ROOT / "tools/reproduce.py", MODEL, "--data", coco, "-d", "cpu"]
    words += ["--gpus", "2", "--epochs", "12", "--quick", "-u", *UPDATES]
    command = [sys.executable, *map(str, words)]
    run = tmp_path / "runs/coco" / f"{MODEL}_epochs12/run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start():
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def epochs() -> int:
        return len(read_log(run)) if (run / LOG_FILE).exists() else 0

    def wait_for_epochs(process, number: int) -> None:
        def is_reached() -> bool:
            return epochs() >= number or process.poll() is not None

        wait_until(is_reached, process.pid, lambda: f"no epoch {number}")
        assert process.poll() is None, process.communicate()

    process = start()
    wait_for_epochs(process, 1)
    (child,) = (
        Path(f"/proc/{process.pid}/task/{process.pid}/children")
        .read_text()
        .split()
    )
    process.kill()
    os.kill(int(child), signal.SIGKILL)  # torchrun; its workers save and end
    process.communicate()  # returns when they have closed their output

    before = epochs()
    process = start()
    wait_for_epochs(process, before + 1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert "SIGTERM during the training" in err
    process = start()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert out.count("already done") == 3
    assert epochs() == 12
    result = json.loads((run.parent / "result.json").read_text())
    assert result["sessions"][0]["processes"] == 2
