"""The files of COCO: found by their official names, or named in one sentence if they are missing."""

import json
import shutil

import pytest

from src.cli.reproduction.coco_files import (
    COCO_2017,
    data_settings,
    files_in,
    files_of,
    has_classes_of_coco,
    identity_of,
    is_coco_2017,
    refuse_missing,
    remark_about,
)
from src.core import DataError, YAMLConfig
from src.core.coco_categories import COCO_CATEGORY_IDS, COCO_NAMES
from src.core.config_file import parse_overrides
from src.core.package_configs import package_config
from tests.fixtures.coco_layout import write_coco_layout


@pytest.fixture
def coco(tmp_path, tiny_data):
    return write_coco_layout(tmp_path / "my COCO", tiny_data)


def give_classes_of_coco(folder):
    path = folder / "annotations/instances_val2017.json"
    labels = json.loads(path.read_text())
    labels["categories"] = [
        {"id": number, "name": name}
        for number, name in zip(COCO_CATEGORY_IDS, COCO_NAMES)
    ]
    path.write_text(json.dumps(labels))


def test_images_may_be_in_a_folder_of_their_own(coco):
    refuse_missing(files_in(coco))
    for part in ("train2017", "val2017"):
        (coco / "images").mkdir(exist_ok=True)
        shutil.move(coco / part, coco / "images" / part)
    files = files_in(coco)
    assert files.val_images == coco / "images/val2017"
    refuse_missing(files)


@pytest.mark.parametrize(
    "name", ["train2017", "annotations/instances_train2017.json"]
)
def test_what_is_missing_is_named_with_the_archives_and_their_place(coco, name):
    path = coco / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError) as error:
        refuse_missing(files_in(coco))
    message = str(error.value)
    assert f"{path} is missing or empty" in message
    assert "train2017.zip, val2017.zip and annotations_trainval2017.zip" in (
        message
    )
    assert f"in {coco}, so that it contains" in message
    assert "--data DIR" in message


def test_an_empty_folder_of_images_is_missing(coco):
    shutil.rmtree(coco / "val2017")
    (coco / "val2017").mkdir()
    with pytest.raises(DataError, match="val2017 is missing or empty"):
        refuse_missing(files_in(coco))


def test_the_configuration_names_the_files_if_the_user_does_not():
    path = package_config("configs/dfine/dfine_hgnetv2_n_coco.yml")
    files = files_of(YAMLConfig(path).resolved_cfg)
    assert str(files.val_labels) == (
        "/data/COCO2017/annotations/instances_val2017.json"
    )
    with pytest.raises(DataError, match="names no|has no train_dataloader"):
        files_of({})


def test_settings_name_the_files_and_keep_the_classes_of_coco(coco):
    give_classes_of_coco(coco)
    settings = parse_overrides(data_settings(files_in(coco)))
    dataset = settings["train_dataloader"]["dataset"]
    assert dataset["img_folder"] == str(coco / "train2017")
    assert set(settings) == {"train_dataloader", "val_dataloader"}


def test_other_classes_are_counted(coco):
    assert not has_classes_of_coco(files_in(coco))
    settings = parse_overrides(data_settings(files_in(coco)))
    assert settings["num_classes"] is None
    assert settings["remap_mscoco_category"] is False


def test_paths_that_look_like_yaml_are_kept(monkeypatch, coco):
    monkeypatch.chdir(coco.parent)
    place = coco.rename("a: b #c")
    settings = parse_overrides(data_settings(files_in(place)))
    dataset = settings["val_dataloader"]["dataset"]
    assert dataset["img_folder"] == "./a: b #c/val2017"


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"categories": [{"id": 1}]}']
)
def test_damaged_labels_are_refused_in_one_sentence(coco, content):
    (coco / "annotations/instances_val2017.json").write_text(content)
    with pytest.raises(
        DataError, match="instances_val2017.json is not a COCO file"
    ):
        data_settings(files_in(coco))


def test_only_the_counts_and_classes_of_coco_make_ap_comparable():
    assert is_coco_2017(COCO_2017, classes=True)
    assert not is_coco_2017(COCO_2017, classes=False)
    assert not is_coco_2017({"train": 24, "val": 8}, classes=True)
    assert remark_about(COCO_2017, classes=True) == (
        "118,287 training and 5,000 validation images, as in COCO 2017"
    )
    other = remark_about({"train": 24, "val": 8}, classes=True)
    assert "24 training and 8 validation images with COCO's classes" in other
    assert "AP on this set is not AP on COCO" in other


def test_files_that_are_replaced_are_checked_again(coco):
    before = identity_of(files_in(coco))
    assert identity_of(files_in(coco)) == before
    give_classes_of_coco(coco)
    assert identity_of(files_in(coco)) != before
