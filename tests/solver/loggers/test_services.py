"""The real packages of the services, in their offline or local modes, each in a process as in a run."""

import json
import logging
from pathlib import Path

import pytest
import torch

from src.solver.loggers.service_writer import ServiceWriter
from src.solver.run_result import RunResult
from tests.fixtures.services import (
    clearml_session,
    require,
    wandb_history,
    wandb_records,
    wandb_summary,
)

RECORD = {"AP": 0.5, "AP50": 0.75, "train_loss": 3.0, "steps": 10}
SECRET = "hunter2"
CONFIG = {
    "epochs": 2,
    "optimizer": {"type": "AdamW", "lr": 0.1},
    "dataset": {"api_key": SECRET, "url": f"https://me:{SECRET}@host/x"},
    "ops": [{"type": "Resize"}] * 100,
    "classes": {"cat (tabby)?": 1, "猫": 2, "x" * 300: 3},
}


@pytest.fixture
def run(tmp_path, monkeypatch, caplog):
    """Return a function that logs a part of a run, as a new process or one that resumes."""
    caplog.set_level(logging.INFO, "dfine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()

    def log(word, epochs, finished=False):
        writer = ServiceWriter(
            word, project="p", name="n", config=CONFIG, folder=folder
        )
        for epoch in epochs:
            picture = torch.full((3, 20, 30), 10 * epoch, dtype=torch.uint8)
            writer.write_picture(epoch, "training", picture)
            for step in (10 * epoch + 5, 10 * epoch + 10):
                writer.write_step(step, {"loss/total": 100.0 - step})
            record = {**RECORD, "steps": 10 * epoch + 10}
            writer.write_epoch(epoch, record)
        if finished:
            report = folder / "report.html"
            report.write_text("<p>report</p>")
            writer.write_result(RunResult(1, {"AP": 0.5}, report))
        writer.close()
        return json.loads((folder / f"logger.{word}.json").read_text())["run"]

    log.folder = folder
    return log


def assert_no_warning(caplog):
    levels = {record.levelname for record in caplog.records}
    assert levels == {"INFO"}, caplog.text


STEPS = [(5, 95.0), (10, 90.0), (15, 85.0), (20, 80.0)]


@pytest.mark.slow
def test_mlflow_has_the_whole_run_once(run, tmp_path, monkeypatch, caplog):
    require("mlflow")
    require("sqlalchemy")
    require("alembic")
    address = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    number = run("mlflow", [0])
    from mlflow import MlflowClient

    client = MlflowClient(address)
    assert client.get_run(number).info.status == "KILLED"  # it was stopped
    assert run("mlflow", [0, 1], finished=True) == number
    assert_no_warning(caplog)
    found = client.get_run(number)
    assert (found.info.run_name, found.info.status) == ("n", "FINISHED")
    history = client.get_metric_history(number, "loss/total")
    assert [(m.step, m.value) for m in history] == STEPS
    history = client.get_metric_history(number, "AP/50-95")
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.5)]
    assert found.data.metrics["best/AP"] == 0.5
    assert found.data.params["optimizer.lr"] == "0.1"
    assert found.data.params["dataset.api_key"] == "***"
    assert found.data.params["classes.cat _tabby__"] == "1"
    assert found.data.params["classes.猫"] == "2"
    names = [file.path for file in client.list_artifacts(number, "pictures")]
    assert names == [
        f"pictures/training_epoch000{epoch}.png" for epoch in (1, 2)
    ]
    names = {file.path for file in client.list_artifacts(number)}
    assert names == {"config.yml", "pictures", "report.html"}
    assert_secret_is_nowhere(tmp_path)


def test_mlflow_has_the_values_if_its_store_of_files_fails(
    run, tmp_path, monkeypatch, caplog
):
    require("mlflow")
    require("sqlalchemy")
    require("alembic")
    address = f"sqlite:///{tmp_path}/store.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    from mlflow import MlflowClient

    client = MlflowClient(address)
    experiment = client.create_experiment("p", "unknown://store")
    number = run("mlflow", [0, 1], finished=True)
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert "the settings were not sent" in record.message
    (found,) = client.search_runs([experiment])
    assert (found.info.run_id, found.info.status) == (number, "FINISHED")
    assert found.data.metrics["best/AP"] == 0.5
    history = client.get_metric_history(number, "loss/total")
    assert [(m.step, m.value) for m in history] == STEPS


def test_an_mlflow_server_that_is_down_gives_one_warning(
    run, monkeypatch, caplog
):
    require("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FileNotFoundError):  # no run was opened
        run("mlflow", [0], finished=True)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "MLflow does not get all values" in record.message
    assert "pw" not in record.message


def test_wandb_has_the_whole_run_once(run, tmp_path, monkeypatch, caplog):
    require("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    number = run("wandb", [0])
    assert run("wandb", [0, 1], finished=True) == number
    assert_no_warning(caplog)
    assert "upload it with: wandb sync" in caplog.text
    rows = wandb_history(run.folder)
    losses = [
        (row["_step"], row["loss/total"]) for row in rows if "loss/total" in row
    ]
    assert losses == STEPS
    epochs = [
        (row["epoch/number"], row["AP/50-95"])
        for row in rows
        if "AP/50-95" in row
    ]
    assert epochs == [(1, 0.5), (2, 0.5)]
    pictures = [row for row in rows if "images/training/path" in row]
    assert len(pictures) == 2
    assert any("report/path" in row for row in rows)
    assert wandb_summary(run.folder)["best/AP"] == 0.5
    runs = [r.run for r in wandb_records(run.folder) if r.HasField("run")]
    assert {record.run_id for record in runs} == {number}
    assert {record.display_name for record in runs} == {"n"}
    assert_secret_is_nowhere(tmp_path)


def test_wandb_keeps_files_if_there_is_no_key(run, monkeypatch, caplog):
    require("wandb")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    run("wandb", [0], finished=True)
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert "its values are kept locally" in caplog.messages[0]
    assert wandb_summary(run.folder)["best/AP"] == 0.5


@pytest.mark.slow
def test_clearml_has_the_whole_run_once(run, tmp_path, monkeypatch, caplog):
    require("clearml")
    monkeypatch.setenv("CLEARML_OFFLINE_MODE", "1")
    number = run("clearml", [0])
    assert run("clearml", [0, 1], finished=True) == number
    assert_no_warning(caplog)
    session = clearml_session(tmp_path, number)
    task = session["task"]
    assert (task["project_name"], task["name"]) == ("p", "n")
    assert not task["script"].get("diff")
    values = session["values"]
    losses = [v[2:] for v in values if v[:2] == ("loss", "total")]
    assert losses == STEPS
    assert [v[2:] for v in values if v[:2] == ("AP", "50-95")] == [
        (1, 0.5),
        (2, 0.5),
    ]
    assert [v[2] for v in values if v[:2] == ("images", "training")] == [1, 2]
    assert ("best/AP", 0.5) in [(v[1], v[3]) for v in values]
    names = [Path(name).name for name in session["files"]]
    assert "report.html" in names
    assert_secret_is_nowhere(tmp_path)


def assert_secret_is_nowhere(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
