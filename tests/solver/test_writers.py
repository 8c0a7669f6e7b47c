import csv
import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from src.core.errors import ResourceError
from src.runtime.own_files import is_ours
from src.solver.run_result import RunResult, result_of_log
from src.solver.writers import (
    ConsoleWriter,
    GuardedWriter,
    JsonLinesWriter,
    PictureFolder,
    TableWriter,
    TensorBoardWriter,
    format_seconds,
    open_tensorboard,
)

RECORD = {
    "epochs": 3,
    "train_loss": 1.5,
    "AP": 0.5,
    "AP50": None,
    "best_metric": "AP",
    "best_score": 0.5,
    "best_epoch": 1,
    "train_lr": 1e-4,
    "images_per_second": 10.0,
    "data_wait": 0.25,
    "peak_memory_mb": 2048.0,
    "seconds_left": 3661.0,
    "test_coco_eval_bbox": [0.5] * 12,
}


def epochs_in(folder) -> list[int]:
    return [
        json.loads(line)["epoch"]
        for line in (folder / "log.txt").read_text().splitlines()
    ]


def test_the_line_of_an_epoch_says_what_a_person_wants_to_know(caplog):
    with caplog.at_level(logging.INFO, "dfine"):
        ConsoleWriter().write_epoch(1, RECORD)
    assert caplog.messages == [
        "epoch 2/3  loss 1.500  AP 0.500  AP50 n/a  best AP 0.500 (epoch 2)  lr 1.00e-04  10.0 images/s  "
        "waiting for data 25 %  memory 2.0 GB  left 1:01:01"
    ]


def test_log_txt_grows_by_a_json_line_an_epoch(tmp_path):
    writer = JsonLinesWriter(tmp_path, 0)
    for epoch in (0, 1):
        writer.write_epoch(epoch, {"epoch": epoch})
    assert epochs_in(tmp_path) == [0, 1]


def test_a_resumed_run_keeps_the_history_and_drops_what_it_does_again(tmp_path):
    (tmp_path / "log.txt").write_text(
        'a line of somebody else\n{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n'
    )
    JsonLinesWriter(tmp_path, 2).write_epoch(2, {"epoch": 2, "again": True})
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines == [
        "a line of somebody else",
        '{"epoch": 0}',
        '{"epoch": 1}',
        '{"epoch": 2, "again": true}',
    ]


@pytest.mark.parametrize("epoch", ['"two"', "null", "[1]", "1.5"])
def test_a_line_whose_epoch_is_no_number_is_left_as_it_is(tmp_path, epoch):
    """Also where a record names it as the best epoch."""
    log = tmp_path / "log.txt"
    kept = f'{{"epoch": {epoch}}}\n'
    last = f'{{"epoch": 0, "best_epoch": {epoch}}}\n'
    log.write_text(kept + last)
    TableWriter(tmp_path, 1).write_epoch(1, record_of(1))
    assert [row["epoch"] for row in rows_in(tmp_path)] == ["1", "2"]
    assert result_of_log(log).epoch is None
    JsonLinesWriter(tmp_path, 0)
    assert log.read_text() == kept


def record_of(epoch: int, **changes) -> dict:
    return {
        "epoch": epoch,
        "stage": 1,
        "train_loss": 3.0,
        "train_loss_vfl": 1.0,
        "train_loss_vfl_aux_0": 2.0,
        "train_lr": 1e-3,
        "learning_rates": {"backbone": 1e-4},
        "AP": 0.25,
        "AP50": None,
        "best_metric": "AP",
        **changes,
    }


def rows_in(folder) -> list[dict]:
    with open(folder / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_epochs(folder, first, epochs, **changes) -> None:
    """Write epochs as a run does: first to log.txt, then to the table."""
    log = JsonLinesWriter(folder, first)
    table = TableWriter(folder, first)
    for epoch in epochs:
        for writer in (log, table):
            writer.write_epoch(epoch, record_of(epoch, **changes))


def test_the_table_has_a_row_an_epoch_counted_from_one(tmp_path):
    write_epochs(tmp_path, 0, [0, 1])
    rows = rows_in(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert (rows[0]["loss"], rows[0]["loss_vfl"]) == ("3", "3")
    assert (rows[0]["lr"], rows[0]["lr_backbone"]) == ("0.001", "0.0001")
    assert (rows[0]["AP"], rows[0]["AP50"]) == ("0.25", "")


def test_a_resumed_run_continues_its_table_without_repeating_an_epoch(tmp_path):
    write_epochs(tmp_path, 0, [0, 1, 2])
    write_epochs(tmp_path, 2, [2, 3], AP=0.5)
    rows = rows_in(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["AP"] for row in rows] == ["0.25", "0.25", "0.5", "0.5"]


def test_a_table_that_is_missing_when_a_run_is_resumed_is_written_again(
    tmp_path,
):
    write_epochs(tmp_path, 0, [0, 1])
    (tmp_path / "results.csv").unlink()
    TableWriter(tmp_path, 2)
    assert [row["epoch"] for row in rows_in(tmp_path)] == ["1", "2"]


def test_epochs_that_a_resumed_run_repeats_are_not_in_its_table(tmp_path):
    write_epochs(tmp_path, 0, [0, 1, 2])
    TableWriter(tmp_path, 1)
    assert [row["epoch"] for row in rows_in(tmp_path)] == ["1"]


def test_curves_are_drawn_after_every_epoch(tmp_path):
    write_epochs(tmp_path, 0, [0])
    first = (tmp_path / "curves.png").read_bytes()
    assert Image.open(tmp_path / "curves.png").size == (1280, 800)
    write_epochs(tmp_path, 1, [1])
    assert (tmp_path / "curves.png").read_bytes() != first


def test_table_and_curves_are_recognized_as_results_of_this_project(tmp_path):
    write_epochs(tmp_path, 0, [0])
    assert is_ours(tmp_path / "results.csv")
    assert is_ours(tmp_path / "curves.png")


@pytest.mark.parametrize("name", ["results.csv", "curves.png"])
def test_a_foreign_table_or_picture_is_not_replaced(tmp_path, name, caplog):
    (tmp_path / name).write_text("mine")
    write_epochs(tmp_path, 0, [0])
    assert (tmp_path / name).read_text() == "mine"
    assert f"{name} was not written by this project" in caplog.text


@pytest.mark.parametrize("name", ["results.csv", "curves.png"])
def test_a_table_or_picture_that_cannot_be_written_keeps_its_old_content(
    tmp_path, monkeypatch, name
):
    write_epochs(tmp_path, 0, [0])
    before = (tmp_path / name).read_bytes()
    replace = os.replace

    def fail(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ResourceError, match="disk full"):
        write_epochs(tmp_path, 1, [1])
    assert (tmp_path / name).read_bytes() == before


def test_tensorboard_gets_steps_and_epochs(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    writer = TensorBoardWriter(tmp_path)
    writer.write_step(7, {"loss/total": 3.0})
    writer.write_epoch(0, RECORD)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [
        (7, 3.0)
    ]
    scores = events.Scalars("AP/50-95")
    assert [(e.step, e.value) for e in scores] == [(1, 0.5)]
    assert "AP/50" not in events.Tags()["scalars"], "it is undefined"


class FullDisk:
    """A writer whose disk is full."""

    def __getattr__(self, name):
        def fail(*arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        return fail


def test_a_writer_that_fails_is_reported_once_and_raises_nothing(caplog):
    writer = GuardedWriter(FullDisk(), "results.csv")
    with caplog.at_level(logging.INFO, "dfine"):
        writer.write_step(1, {})
        writer.write_epoch(0, RECORD)
        writer.write_picture(0, "training", torch.zeros(3, 2, 2))
        writer.write_result(RunResult(None, {}))
        writer.close()
    assert caplog.messages == [
        "results.csv is incomplete: [Errno 28] No space left on device. The training is not affected; "
        "log.txt has all values of epochs"
    ]


def test_a_guarded_writer_passes_everything_on(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("")
    writer = GuardedWriter(TableWriter(tmp_path, 0), "results.csv")
    writer.write_epoch(0, {**RECORD, "epoch": 0, "stage": 1})
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2


def test_tensorboard_gets_the_metrics_of_the_best_epoch(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    writer = TensorBoardWriter(tmp_path)
    writer.write_result(RunResult(2, {"AP": 0.75}))
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    best = events.Scalars("best/AP")
    assert [(e.step, e.value) for e in best] == [(2, 0.75)]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0:00:00"),
        (59.9, "0:00:59"),
        (3600, "1:00:00"),
        (90061, "25:01:01"),
    ],
)
def test_durations_are_hours_minutes_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_pictures_become_jpeg_files_and_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    folder, board = (
        PictureFolder(tmp_path),
        TensorBoardWriter(tmp_path / "summary"),
    )
    for writer in (folder, board):
        writer.write_picture(
            4, "training", torch.full((3, 20, 30), 200, dtype=torch.uint8)
        )
        writer.close()
    assert Image.open(tmp_path / "pictures/training_epoch0005.jpg").size == (
        30,
        20,
    )
    shown = (
        EventAccumulator(str(tmp_path / "summary"))
        .Reload()
        .Images("images/training")
    )
    assert [(event.step, event.width, event.height) for event in shown] == [
        (5, 30, 20)
    ]


def test_a_folder_whose_name_is_not_utf8_costs_the_curves_and_nothing_else(
    tmp_path, caplog
):
    folder = Path(os.fsdecode(b"run_\xff"))
    assert open_tensorboard(tmp_path / folder, "a: 1") is None
    assert "folder names must be valid UTF-8" in caplog.text
    assert not list(tmp_path.iterdir())
    board = open_tensorboard(tmp_path / "run", "a: 1")
    board.close()
    assert list((tmp_path / "run").iterdir())
