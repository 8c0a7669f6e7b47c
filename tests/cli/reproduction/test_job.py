"""The model, the number of GPUs and the folder of a reproduction."""

import pytest

from src.cli.reproduction.defaults import DEFAULT_MODEL
from src.cli.reproduction.job import (
    choose_processes,
    default_folder,
    find_model,
    is_place,
    settings_for,
)
from src.core import ConfigError
from src.core.config_file import parse_overrides
from src.core.package_configs import package_config


@pytest.mark.parametrize("gpus", [None, 8])
def test_all_gpus_are_used_unless_fewer_are_asked_for(gpus):
    assert choose_processes(gpus, None, available=8) == 8
    assert choose_processes(2, None, available=8) == 2
    assert choose_processes(None, "cuda:1", available=8) == 1
    assert choose_processes(None, "cpu", available=8) == 1
    assert choose_processes(2, "cpu", available=0) == 2


@pytest.mark.parametrize(
    ("gpus", "device", "available", "message"),
    [
        (0, None, 8, "--gpus is 0, expected at least 1"),
        (9, None, 8, "--gpus is 9, but torch finds 8"),
        (2, "cuda:1", 8, "--device cuda:1 is one GPU, but --gpus is 2"),
        (None, None, 0, "torch finds no GPU"),
        (2, "cuda", 0, "torch finds no GPU"),
    ],
)
def test_gpus_that_are_not_there_are_refused(gpus, device, available, message):
    with pytest.raises(ConfigError, match=message):
        choose_processes(gpus, device, available=available)


def test_the_default_is_a_model_of_the_table_with_the_recommended_recipe():
    entry = find_model(DEFAULT_MODEL)
    text = package_config(entry.config).read_text(encoding="utf-8")
    assert "recommended.yml" in text


def test_a_model_of_objects365_is_refused():
    with pytest.raises(ConfigError, match="is trained on Objects365"):
        find_model("dfine_s_obj365")
    assert find_model("dfine_n_coco").size == "n"


def test_a_name_like_no_other_is_refused_with_an_example():
    with pytest.raises(ConfigError, match="pass one of its names, such as"):
        find_model("resnet")


def test_a_shortened_training_has_a_folder_of_its_own():
    whole = default_folder("dfine_n_coco", None)
    assert whole.as_posix() == "runs/coco/dfine_n_coco"
    assert default_folder("dfine_n_coco", 1) != whole


def test_settings_of_the_user_win():
    settings = settings_for(
        find_model("dfine_n_coco"),
        ["num_classes=null"],
        ["use_amp=False", "epochs=7"],
        epochs=1,
        amp=True,
    )
    merged = parse_overrides(list(settings))
    assert merged == {"num_classes": None, "use_amp": False, "epochs": 7}


def test_a_model_that_starts_from_another_one_gets_it_as_tuning():
    entry = find_model("dfine_s_obj2coco")
    settings = settings_for(entry, [], [], epochs=None, amp=False)
    assert settings == ("tuning=dfine_s_obj365",)


def test_settings_that_name_files_are_those_of_a_machine():
    assert is_place("train_dataloader.dataset.img_folder=/data/train2017")
    assert is_place("val_dataloader.dataset.ann_file=a.json")
    assert not is_place("train_dataloader.num_workers=0")
