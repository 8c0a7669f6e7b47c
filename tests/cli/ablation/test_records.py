"""Records of runs, and the scores in their logs."""

import json

import pytest

from src.cli.ablation.records import (
    Part,
    Record,
    commit_of_code,
    read_epochs,
    read_record,
    record_file,
    write_record,
)
from src.core.errors import CheckpointError
from tests.fixtures.ablation_plans import runs


def write_log(folder, *lines) -> str:
    path = folder / "log.txt"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_epochs_are_read_from_the_log(tmp_path):
    line = {"epoch": 0, "AP": 0.25, "AP50": 0.5, "train_loss": 3.0, "steps": 10}
    (epoch,) = read_epochs(write_log(tmp_path, {**line, "other": [1]}))
    assert (epoch.number, epoch.ap, epoch.ap50) == (1, 0.25, 0.5)
    assert (epoch.loss, epoch.steps) == (3.0, 10)


@pytest.mark.parametrize("score", [None, -1.0, float("nan")])
def test_an_undefined_score_counts_as_zero(tmp_path, score):
    (epoch,) = read_epochs(write_log(tmp_path, {"epoch": 0, "AP": score}))
    assert epoch.ap == 0.0


def test_logs_without_steps_can_be_read(tmp_path):
    (epoch,) = read_epochs(write_log(tmp_path, {"epoch": 0, "AP": 0.5}))
    assert epoch.steps is None


def test_a_damaged_log_is_reported_with_its_line(tmp_path):
    path = write_log(tmp_path, {"epoch": 0, "AP": 0.5}, {"epoch": "one"})
    with pytest.raises(CheckpointError, match="line 2.epoch is 'one'"):
        read_epochs(path)
    path.write_text('{"epoch": 0}\n{"epo')
    with pytest.raises(CheckpointError, match="line 2 is not JSON"):
        read_epochs(path)


def test_a_missing_or_empty_log_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_epochs(tmp_path / "log.txt")
    with pytest.raises(CheckpointError, match="has no epoch"):
        read_epochs(write_log(tmp_path))


def test_a_record_is_read_as_it_was_written(tmp_path):
    run = runs(tmp_path)[0]
    part = Part("abc", "2.10", "a processor", cpu_minutes=1.5, exit_code=75)
    record = Record({"DATA": "/d"}, [part], error="no memory")
    write_record(run, tmp_path, record)
    assert read_record(run, tmp_path) == record
    settings = record_file(run, tmp_path).with_name("settings.yml")
    assert "lr: 0.001" in settings.read_text()


def test_a_damaged_record_is_reported(tmp_path):
    run = runs(tmp_path)[0]
    write_record(run, tmp_path, Record())
    path = record_file(run, tmp_path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_record(run, tmp_path)
    path.write_text('{"parts": 3}')
    with pytest.raises(CheckpointError, match="parts is 3, expected a list"):
        read_record(run, tmp_path)


def test_the_commit_is_known_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert commit_of_code() == "unknown"
