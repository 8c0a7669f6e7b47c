"""`--log` in whole runs, with a service that writes its calls to a file."""

import pytest

from src.solver.loggers import choice, service_writer
from tests.fixtures import services
from tests.fixtures.commands import run_python, write_tiny_config
from tests.fixtures.services import calls
from tests.fixtures.tiny import ROOT
from tests.fixtures.train_here import train_here


@pytest.fixture
def config(tiny_data, tmp_path):
    return write_tiny_config(
        tmp_path, tiny_data, epochs=2, print_freq=2, pictures=True
    )


@pytest.fixture
def recorder(monkeypatch):
    """Let a recorder stand for MLflow, whose package need not be installed."""
    found = choice.is_installed
    monkeypatch.setattr(
        choice, "is_installed", lambda name: name == "mlflow" or found(name)
    )
    start = service_writer._start_process

    def start_recorder():
        process = start()
        opening = service_writer.ServiceWriter._feed

        def feed(self):
            message = self._queue.get()
            assert message["module"] == "loggers.mlflow_service"
            message["module"] = services.__name__
            line = service_writer.json.dumps(message) + "\n"
            self._process.stdin.write(line.encode())
            opening(self)

        monkeypatch.setattr(service_writer.ServiceWriter, "_feed", feed)
        monkeypatch.setattr(service_writer, "_start_process", start)
        return process

    monkeypatch.setattr(service_writer, "_start_process", start_recorder)


def test_a_run_is_logged_with_its_report(config, tmp_path, recorder):
    train_here(
        *("-c", config, "--seed=1", "--log", "mlflow", "-u", "report=True")
    )
    run = tmp_path / "run"
    kinds = [call["kind"] for call in calls(run)]
    assert kinds == [
        *("open", "picture", "step", "step", "step", "picture", "epoch"),
        *("picture", "step", "step", "step", "picture", "epoch"),
        *("result", "close"),
    ]
    epochs = [call for call in calls(run) if call["kind"] == "epoch"]
    assert [(call["epoch"], call["step"]) for call in epochs] == [
        (1, 6),
        (2, 12),
    ]
    result, closed = calls(run)[-2:]
    assert result["report"] == "report.html"
    assert set(result["metrics"]) >= {"AP", "AP50", "F1"}
    assert closed["finished"]
    assert (run / "results.csv").is_file()
    assert list((run / "summary").iterdir())


def test_loggers_that_are_left_out_write_nothing(config, tmp_path):
    train_here("-c", config, "--seed=1", "-u", "epochs=1", "loggers=[]")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "log.txt" in names
    assert not names & {"results.csv", "curves.png", "summary"}


def test_a_missing_package_is_refused_before_anything_is_written(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(choice, "is_installed", lambda name: False)
    ended = train_here("-c", config, "--log", "clearml")
    assert ended.code == 2
    assert "the package clearml is not installed: pip install clearml" in (
        ended.err
    )
    assert not (tmp_path / "run/best.pth").exists()
    assert not (tmp_path / "run/config.yml").exists()


def test_an_unknown_logger_is_named_with_the_known_ones(config):
    ended = train_here("-c", config, "-u", "loggers=[neptune]")
    assert ended.code == 2
    assert (
        "loggers is ['neptune'], expected a list, each item one of 'csv'"
        in (ended.err)
    )


@pytest.mark.slow
def test_only_the_first_rank_writes(config, tmp_path):
    services.require("mlflow")
    done = run_python(
        *(ROOT / "train.py", "-c", config, "--seed=1", "--loggers", "mlflow"),
        *("-u", "epochs=1", "pictures=False"),
        ranks=2,
        MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/store.db",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/store.db")
    experiment = client.get_experiment_by_name("D-FINE")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
