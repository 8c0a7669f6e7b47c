"""The plan of a reproduction: processes, precision and data follow from the arguments and the machine."""

import pytest
import torch

from src.cli import reproduce
from src.cli.reproduction.plan import make_plan
from src.core import ConfigError, DataError
from tests.fixtures.coco_layout import write_coco_layout

MODEL = "dfine_n_coco"


@pytest.fixture
def coco(tmp_path, tiny_data):
    return write_coco_layout(tmp_path / "COCO", tiny_data)


@pytest.fixture(autouse=True)
def eight_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def plan_for(*words):
    parser = reproduce.make_parser("reproduce")
    return make_plan(parser.parse_args([MODEL, *map(str, words)]))


def test_all_gpus_train_the_whole_recipe_in_mixed_precision(coco):
    plan = plan_for("--data", coco)
    assert plan.job.processes == 8
    assert plan.job.device is None
    assert plan.job.folder.as_posix() == f"runs/coco/{MODEL}"
    assert "use_amp=True" in plan.job.updates
    assert plan.cfg.settings.use_amp is True
    assert plan.cfg.settings.epochs == plan.recipe_epochs == 160
    assert plan.job.changes == ()
    dataset = plan.cfg.yaml_cfg["train_dataloader"]["dataset"]
    assert dataset["img_folder"] == str(coco / "train2017")


def test_a_cpu_trains_in_the_precision_of_the_configuration(coco):
    plan = plan_for("--data", coco, "-d", "cpu")
    assert plan.job.processes == 1
    assert "use_amp=True" not in plan.job.updates
    assert plan.cfg.settings.device == "cpu"


def test_settings_of_the_user_are_changes_of_the_recipe(coco):
    update = ["use_amp=False", "train_dataloader.num_workers=2"]
    plan = plan_for("--data", coco, "--epochs", 2, "-u", *update)
    assert plan.job.changes == tuple(update)
    assert plan.cfg.settings.use_amp is False
    assert plan.cfg.settings.epochs == 2
    assert plan.recipe_epochs == 160
    assert plan.job.folder.name == f"{MODEL}_epochs2"


def test_without_a_folder_the_files_of_the_configuration_are_used(coco):
    with pytest.raises(DataError, match="/data/COCO2017/train2017"):
        plan_for()
    files = []
    for part in ("train", "val"):
        dataset = f"{part}_dataloader.dataset"
        labels = coco / f"annotations/instances_{part}2017.json"
        files.append(f"{dataset}.img_folder={coco / part}2017")
        files.append(f"{dataset}.ann_file={labels}")
    plan = plan_for("-u", *files)
    assert plan.data.val_images == coco / "val2017"
    assert plan.job.changes == ()  # places are not changes of the recipe


def test_a_wrong_setting_is_refused_before_any_work(coco):
    with pytest.raises(ConfigError, match="no_such_setting"):
        plan_for("--data", coco, "-u", "no_such_setting=1")
