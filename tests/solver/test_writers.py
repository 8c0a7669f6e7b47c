import json
import logging
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from src.core import ConfigError
from src.solver.writers import (
    ConsoleWriter,
    JsonLinesWriter,
    PictureFolder,
    TensorBoardWriter,
    WandbWriter,
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


def test_tensorboard_gets_steps_and_epochs(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    writer = TensorBoardWriter(tmp_path)
    writer.write_step(7, {"Loss/total": 3.0})
    writer.write_epoch(0, RECORD)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("Loss/total")] == [
        (7, 3.0)
    ]
    assert events.Scalars("Test/coco_eval_bbox_0")[0].value == 0.5


def test_missing_wandb_is_reported_before_training(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(
        ConfigError,
        match="use_wandb is true but wandb is not installed; pip install wandb, or set use_wandb: False",
    ):
        WandbWriter("p", "n", {}, tmp_path)


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
        .Images("Images/training")
    )
    assert [(event.step, event.width, event.height) for event in shown] == [
        (4, 30, 20)
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
