"""The data of a run are opened and checked before anything expensive is built."""

import json
from pathlib import Path

import pytest

from src.core.errors import ConfigError, DataError
from src.detection.weight_file import WeightFile
from src.solver.run_data import open_evaluation_data, open_run_data
from src.solver.run_identity import data_identity
from src.solver.start_weights import Start
from tests.fixtures.states import small_state
from tests.fixtures.tiny import tiny_config, write_tiny_data


@pytest.fixture
def data(tmp_path):
    return write_tiny_data(tmp_path / "data", train=4, val=2)


def test_a_run_has_loaders_classes_and_an_evaluator(data, tmp_path):
    cfg = tiny_config(data, tmp_path)
    opened = open_run_data(cfg, Start(), 5, tmp_path)
    assert (
        len(opened.train_loader.dataset),
        len(opened.val_loader.dataset),
    ) == (4, 2)
    assert [entry["name"] for entry in opened.classes] == [
        "disc",
        "square",
        "triangle",
        "ring",
    ]
    assert set(opened.identity) == {"train", "val"} and not opened.changed
    assert (
        cfg.yaml_cfg["num_classes"] == 4
        and opened.train_loader.dataset.seed == 5
    )


def test_an_evaluation_reads_no_training_data(data, tmp_path):
    (data.folder / "train.json").unlink()
    opened = open_evaluation_data(
        tiny_config(data, tmp_path), Start(), 0, tmp_path
    )
    assert (
        set(opened.identity) == {"val"} and len(opened.val_loader.dataset) == 2
    )


def test_images_are_evaluated_as_they_are(data, tmp_path):
    cfg = tiny_config(
        data, tmp_path, val_dataloader={"collate_fn": {"mixup_prob": 0.5}}
    )
    with pytest.raises(
        ConfigError,
        match="val_dataloader has mixup_prob, but images are evaluated as they are",
    ):
        open_evaluation_data(cfg, Start(), 0, tmp_path)


def test_a_metric_that_the_evaluator_does_not_have_is_refused(data, tmp_path):
    with pytest.raises(
        ConfigError, match="best_metric is 'AP_huge', but the evaluator gives"
    ):
        open_run_data(
            tiny_config(data, tmp_path, best_metric="AP_huge"),
            Start(),
            0,
            tmp_path,
        )


def test_training_data_without_a_usable_box_are_refused(data, tmp_path):
    path = data.folder / "train.json"
    labels = json.loads(path.read_text())
    for annotation in labels["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps(labels))
    with pytest.raises(DataError, match="has no usable box to learn from"):
        open_run_data(tiny_config(data, tmp_path), Start(), 0, tmp_path)


def resumed(cfg, identity) -> Start:
    """Return what a run of a configuration and of data left behind."""
    state = small_state() | {
        "data": identity,
        "meta": {"config": cfg.to_yaml(), "classes": []},
    }
    return Start(
        WeightFile(Path("last.pth"), state["model"], state["meta"]), state
    )


def test_a_resumed_run_must_have_the_same_data_unless_a_change_is_accepted(
    data, tmp_path
):
    cfg = tiny_config(data, tmp_path, num_classes=4)
    identity = data_identity(
        {
            "train": cfg.train_dataloader.dataset,
            "val": cfg.val_dataloader.dataset,
        }
    )
    assert not open_run_data(cfg, resumed(cfg, identity), 0, tmp_path).changed
    identity["train"]["labels"] = identity["train"]["labels"] + 1
    with pytest.raises(
        DataError, match="the data differs from that of the run to resume"
    ):
        open_run_data(cfg, resumed(cfg, identity), 0, tmp_path)
    cfg.settings.override = True
    assert open_run_data(cfg, resumed(cfg, identity), 0, tmp_path).changed
