"""Training, evaluation and export from Python: results, callbacks, errors, and what a call leaves behind."""

import importlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import src
from src import Detector, evaluate, export, train
from src.core import CheckpointError, ConfigError, DataError
from src.core.errors import ResourceError
from src.runtime.log import logger, shown_in_terminal
from tests.fixtures.slow import slow
from tests.fixtures.tiny import ROOT
from tests.fixtures.trained_tiny import TRAINED

FEW_STEPS = {
    "train_dataloader.num_workers": 0,
    "val_dataloader.num_workers": 0,
    "train_dataloader.collate_fn.stop_epoch": None,
    "pictures": False,
    "report": False,
}


@pytest.fixture
def start(tiny_data, tmp_path, monkeypatch):
    """Return a function that trains the tiny detector in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def start(**arguments):
        given = {
            "model": TRAINED,
            "epochs": 1,
            "batch_size": 12,
            "device": "cpu",
            "seed": 1,
            "settings": FEW_STEPS,
        }
        return train(tiny_data.folder, **(given | arguments))

    return start


class Recorder:
    """Keeps the events of all callbacks with their names."""

    def __init__(self):
        self.events = []

    def on_step(self, event):
        self.events.append(("step", event))

    def on_evaluation(self, event):
        self.events.append(("evaluation", event))

    def on_save(self, event):
        self.events.append(("save", event))

    def on_epoch(self, event):
        self.events.append(("epoch", event))

    def of(self, kind: str) -> list:
        return [event for name, event in self.events if name == kind]


def test_a_training_returns_its_files_metrics_and_history(start, tiny_data):
    result = start(epochs=2)
    assert result.folder == Path("runs/train")
    assert result.best == Path("runs/train/best.pth")
    assert result.last.is_file()
    assert [row["epoch"] for row in result.history] == [1, 2]
    best = result.history[result.best_epoch - 1]
    assert result.metrics["AP"] == best["AP"]
    assert result.metrics["AP"] == max(row["AP"] for row in result.history)
    own = evaluate(result.best, tiny_data.folder, device="cpu")
    assert own["AP"] == pytest.approx(result.metrics["AP"], abs=1e-6)
    assert "history" not in repr(result)


@pytest.mark.slow
def test_two_trainings_in_one_process_have_folders_of_their_own(start):
    assert start().folder == Path("runs/train")
    assert start(name="train").folder == Path("runs/train2")
    assert start(output_dir="here").folder == Path("here")


def test_a_report_is_written_at_the_end(start):
    result = start(settings=FEW_STEPS | {"report": True})
    assert (result.folder / "report.html").is_file()


def test_a_run_is_resumed_from_its_folder(start):
    first = start(epochs=1)
    result = train(resume=first.folder, epochs=1, settings={"override": True})
    assert result.history == first.history
    with pytest.raises(ConfigError, match="seed was given together with resu"):
        train(resume=first.folder, seed=2)


def test_settings_win_over_other_arguments(start):
    settings = FEW_STEPS | {"optimizer.lr": 1e-5, "optimizer": {"lr": 3e-5}}
    result = start(epochs=3, settings=settings | {"epochs": 1})
    assert len(result.history) == 1
    text = (result.folder / "config.yml").read_text()
    assert "lr: 3.0e-05" in text


def test_every_callback_gets_its_event_in_order(start):
    recorder = Recorder()
    result = start(callbacks=recorder)
    names = [name for name, _ in recorder.events]
    assert names == ["step"] * 2 + ["evaluation", "save", "save", "epoch"]
    steps = recorder.of("step")
    assert [event.step for event in steps] == [1, 2]
    assert steps[0].steps_per_epoch == 2
    assert steps[1].total_steps == 2
    assert steps[0].loss == pytest.approx(sum(steps[0].losses.values()))
    assert "loss_vfl" in steps[0].losses
    assert {event.epoch for _, event in recorder.events} == {1}
    (evaluation,) = recorder.of("evaluation")
    assert evaluation.metrics["AP"] == pytest.approx(result.metrics["AP"])
    best, last = recorder.of("save")
    assert (best.path, best.is_best) == (result.best, True)
    assert (last.path, last.is_best) == (result.last, False)
    (epoch,) = recorder.of("epoch")
    assert epoch.is_best
    assert epoch.row["loss"] == pytest.approx(result.history[0]["loss"])
    mean = sum(event.loss for event in steps) / 2
    assert mean == pytest.approx(result.history[0]["loss"], rel=1e-5)


def test_the_losses_of_a_step_are_read_only_if_they_are_used(
    start, monkeypatch
):
    events = []
    start(callbacks={"on_step": events.append})
    reads = []
    ordinary = torch.stack
    monkeypatch.setattr(
        torch, "stack", lambda *given: reads.append(1) or ordinary(*given)
    )
    assert "losses" not in vars(events[0])
    assert events[0].losses is events[0].losses
    assert reads == [1]


def test_functions_and_objects_can_be_combined(start):
    steps, recorder = [], Recorder()
    start(callbacks=[{"on_step": steps.append}, recorder])
    assert len(steps) == len(recorder.of("step")) == 2


class OfUser(Exception):
    pass


@pytest.mark.parametrize(
    "name", ["on_step", *slow("on_evaluation", "on_save", "on_epoch")]
)
def test_an_error_in_a_callback_is_raised_after_saving(start, name):
    calls = []

    def fail(event):
        calls.append(event)
        raise OfUser("mine")

    with pytest.raises(OfUser, match="mine") as caught:
        start(epochs=2, callbacks={name: fail})
    assert caught.traceback[-1].name == "fail"
    assert len(calls) == 1
    state = torch.load("runs/train/last.pth", weights_only=True)
    # on_step stops within the first epoch, the others within the second one
    done = state["progress"]
    assert done["total_steps"] == (2 if name == "on_step" else 3)


def test_a_stopped_run_is_resumed_to_the_same_result(start):
    whole = start(epochs=2)

    def fail(event):
        if event.total_steps == 2:
            raise OfUser

    with pytest.raises(OfUser):
        start(epochs=2, callbacks={"on_step": fail}, output_dir="stopped")
    result = train(resume="stopped")
    losses = [row["loss"] for row in result.history]
    assert losses == [row["loss"] for row in whole.history]


def test_an_error_of_an_operating_system_in_a_callback_is_not_translated(start):
    def fail(event):
        raise FileNotFoundError(2, "No such file or directory", "mine.txt")

    with pytest.raises(FileNotFoundError, match="mine.txt"):
        start(callbacks={"on_epoch": fail})


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ({"on_epochs": print}, "'on_epochs' is not a callback; did you mean"),
        ({"on_epoch": 3}, "on_epoch is a int, expected a function"),
        (print, "without a method on_step or on_evaluation"),
    ],
)
def test_callbacks_that_would_never_be_called_are_refused(
    start, callbacks, message
):
    with pytest.raises(ConfigError, match=message):
        start(callbacks=callbacks)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epochs": 0}, ConfigError, "epochs is 0, expected at least 1"),
        ({"model": "huge"}, ConfigError, "huge"),
        ({"model": "none.pth"}, ConfigError, "none.pth"),
        ({"device": "tpu"}, ConfigError, "device 'tpu'"),
        ({"settings": {"epoch": 3}}, ConfigError, "epoch"),
        ({"data_format": "voc"}, DataError, "voc|VOC"),
        ({"resume": "runs/none", "batch_size": None}, ConfigError, "data was"),
    ],
)
def test_mistakes_raise_one_sentence_and_leave_no_folder(
    start, arguments, error, message
):
    if "resume" in arguments:
        arguments = arguments | {"model": None, "seed": None}
    with pytest.raises(error, match=message):
        start(**arguments)
    assert not Path("runs/train").exists()


def test_a_run_that_does_not_exist_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        train(resume=tmp_path / "none")


def test_without_data_there_is_one_sentence():
    with pytest.raises(ConfigError, match="data is missing: pass a folder"):
        train(model="s")


def test_too_little_memory_is_an_error_of_this_package(start, monkeypatch):
    def exhausted(*given, **named):
        raise MemoryError

    monkeypatch.setattr("src.api.DetSolver.train", exhausted)
    with pytest.raises(ResourceError, match="out of memory"):
        start()


def test_a_call_restores_what_it_changes(start, monkeypatch):
    def state():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
            [signal.getsignal(number) for number in (2, 15, 10, 1)],
            (logger.level, logger.handlers[:], logger.propagate),
            torch.get_num_threads(),
            # torch names its cache in the environment at the first training
            {k: v for k, v in os.environ.items() if "INDUCTOR" not in k},
        )

    before = state()
    start()
    assert state() == before


def test_another_thread_can_train(start):
    results = []
    thread = threading.Thread(target=lambda: results.append(start()))
    thread.start()
    thread.join()
    assert results[0].best.is_file()


def test_messages_are_shown_only_if_the_program_has_no_logging(
    monkeypatch, capsys
):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logger, "handlers", [])
    with shown_in_terminal():
        logger.info("shown")
    logger.info("not shown")
    monkeypatch.setattr(
        logging.getLogger(), "handlers", [logging.NullHandler()]
    )
    with shown_in_terminal():
        logger.info("handled by the program")
    out = capsys.readouterr().out
    assert out.endswith(" shown\n")
    assert out.count("\n") == 1


def test_an_evaluation_needs_only_a_detector(tiny_data, detector):
    metrics = evaluate(detector, tiny_data.folder / "val.json")
    assert metrics == evaluate(TRAINED, tiny_data.folder, device="cpu")
    json.dumps(metrics)
    with pytest.raises(ConfigError, match="device is only used"):
        evaluate(detector, tiny_data.folder, device="cpu")


@pytest.mark.slow
def test_an_export_is_written_beside_its_checkpoint(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    (tmp_path / "best.pth").write_bytes(TRAINED.read_bytes())
    path = export(tmp_path, check=True)
    assert path == tmp_path / "best.onnx"
    assert Detector(path, device="cpu").names[3] == "ring"


def test_other_formats_are_refused():
    with pytest.raises(ConfigError, match="'tflite', expected 'onnx'"):
        export(TRAINED, "tflite")


def test_the_package_exports_its_functions_without_importing_them():
    code = (
        "import sys, src\n"
        "assert {'train', 'evaluate', 'export', 'Detector'} <= set(dir(src))\n"
        "print([name for name in sys.modules if name.startswith('src.')])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "[]", ended.stderr
    assert src.train is importlib.import_module("src.api").train


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(TRAINED, device="cpu")
