"""The writer of a service, with a real process: the training never waits for it and never fails with it."""

import logging
import time

import pytest
import torch

from src.solver.loggers import service_writer
from src.solver.loggers.service_writer import ServiceWriter
from src.solver.run_log import RunLog
from src.solver.run_result import RunResult
from tests.fixtures.services import calls

RECORD = {"AP": 0.5, "AP50": None, "train_loss": float("nan"), "steps": 10}
PICTURE = torch.full((3, 20, 30), 200, dtype=torch.uint8)


@pytest.fixture
def start(tmp_path, caplog):
    """Return a function that starts a writer whose service is a recorder."""
    caplog.set_level(logging.INFO, "dfine")

    def start_writer(**config):
        return ServiceWriter(
            "mlflow",
            project="p",
            name="run 1",
            config=config,
            folder=tmp_path,
            module="tests.fixtures.services",
        )

    return start_writer


def write_all(writer):
    writer.write_picture(0, "training", PICTURE)
    writer.write_step(5, {"loss/total": 2.0, "lr/default": float("inf")})
    writer.write_epoch(0, RECORD)


def test_a_service_gets_the_history_and_the_result(start, tmp_path, caplog):
    writer = start(epochs=3)
    write_all(writer)
    report = tmp_path / "report.html"
    writer.write_result(RunResult(1, {"AP": 0.5}, report))
    writer.close()
    opened, picture, step, epoch, result, closed = calls(tmp_path)
    assert opened == {"kind": "open", "name": "run 1", "identifier": None}
    assert picture["name"] == "training_epoch0001.png" and picture["is_png"]
    assert step == {"kind": "step", "step": 5, "loss/total": 2.0}
    assert epoch == {"kind": "epoch", "epoch": 1, "step": 10, "AP": 0.5}
    assert result["metrics"] == {"AP": 0.5}
    assert result["report"] == "report.html"
    assert closed == {"kind": "close", "finished": True}
    assert caplog.messages == ["MLflow: here"]


def test_a_run_that_is_stopped_is_not_finished_and_is_continued_later(
    start, tmp_path
):
    writer = start()
    write_all(writer)
    writer.close()
    assert calls(tmp_path)[-1] == {"kind": "close", "finished": False}
    writer = start()
    write_all(writer)
    writer.write_step(10, {"loss/total": 1.0})
    writer.close()
    opened, step, closed = calls(tmp_path)[-3:]
    assert opened["identifier"] == "run-1"
    assert step["step"] == 10


def test_a_service_that_is_down_is_reported_once(start, tmp_path, caplog):
    (tmp_path / "down").touch()
    writer = start()
    for _ in range(3):
        write_all(writer)
    writer.write_result(RunResult(None, {}))
    writer.close()
    (message,) = caplog.messages
    assert message == (
        "MLflow does not get all values of this run: ConnectionError: https://***@host cannot be reached; "
        "it is tried again. The training is not affected; log.txt has all values of epochs"
    )
    assert calls(tmp_path) == []


def test_a_process_that_crashes_is_reported_once(start, caplog):
    writer = start(crash=True)
    write_all(writer)
    writer.close()
    write_all(writer)
    (message,) = caplog.messages
    assert (
        "MLflow does not get all values of this run: its process has ended"
        in message
    )


def test_nobody_waits_for_a_slow_service(start, caplog, monkeypatch):
    monkeypatch.setattr(service_writer, "MOST_WAITING", 50)
    monkeypatch.setattr(service_writer, "CLOSE_SECONDS", 0.5)
    writer = start(seconds_to_open=3600)
    for number in range(30_000):  # more than the pipe takes
        writer.write_step(number, {"loss/total": 2.0})
    writer.close()
    (message,) = caplog.messages
    assert "it is too slow, so values of steps are left out" in message
    assert writer._process.returncode == -9


def test_a_service_that_does_not_end_is_ended(start, caplog, monkeypatch):
    monkeypatch.setattr(service_writer, "CLOSE_SECONDS", 2.0)
    writer = start(seconds_to_close=60)
    writer.write_result(RunResult(None, {}))
    writer.close()
    assert "it did not take the last values within 2 s" in caplog.messages[-1]


def test_services_that_hang_are_waited_for_together(start, monkeypatch):
    """The time of a service begins with `begin_to_close`, so all must begin before one is waited for."""
    monkeypatch.setattr(service_writer, "CLOSE_SECONDS", 0.5)
    writers = [start(seconds_to_open=3600) for _ in range(3)]
    steps = []
    for name in ("begin_to_close", "close"):
        inner = getattr(ServiceWriter, name)

        def recorded(writer, name=name, inner=inner):
            steps.append((name, writers.index(writer)))
            inner(writer)

        monkeypatch.setattr(ServiceWriter, name, recorded)
    RunLog(writers, plan=None).close()
    begun = [number for name, number in steps[:3] if name == "begin_to_close"]
    assert sorted(begun) == [0, 1, 2]
    assert [writer._process.returncode for writer in writers] == [-9] * 3


@pytest.fixture
def opening_of(start, monkeypatch):
    """Return a function that returns the first message to the process of a service."""
    lines = []
    monkeypatch.setattr(
        ServiceWriter, "_feed", lambda self: lines.append(self._queue.get())
    )

    def first_message(**config):
        writer = start(**config)
        deadline = time.monotonic() + 120
        while not lines and time.monotonic() < deadline:
            time.sleep(0.01)
        writer._process.kill()
        writer._process.wait()
        assert writer._ended.wait(120)  # it logs that the process has ended
        return lines.pop()

    return first_message


def test_secrets_do_not_leave_the_trainer(opening_of):
    opening = opening_of(dataset={"password": "hunter2"}, tags=("a", 1))
    assert opening["config"] == {
        "dataset": {"password": "***"},
        "tags": ["a", 1],
    }
    assert "hunter2" not in str(opening)


def test_what_is_not_unicode_is_replaced(opening_of):
    opening = opening_of(img_folder="bad\udcff", 猫={"猫": "猫"})
    assert opening["config"] == {"img_folder": "bad?", "猫": {"猫": "猫"}}
