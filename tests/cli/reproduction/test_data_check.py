"""The data check accepts what training repairs, as COCO needs it, and refuses the rest."""

import json

import pytest

from src.cli.reproduction.coco_files import data_settings, files_in
from src.cli.reproduction.data_check import check_data
from src.core import DataError, YAMLConfig
from src.core.config_file import parse_overrides
from src.core.package_configs import package_config
from tests.fixtures.coco_layout import write_coco_layout

CONFIG = package_config("configs/dfine/dfine_hgnetv2_n_coco.yml")


@pytest.fixture
def coco(tmp_path, tiny_data):
    return write_coco_layout(tmp_path / "COCO", tiny_data)


def check(folder, tmp_path, *, quick=True):
    files = files_in(folder)
    cfg = YAMLConfig(CONFIG, **parse_overrides(data_settings(files)))
    return check_data(cfg, files, tmp_path / "data.json", quick=quick)


def change(folder, change_labels):
    path = folder / "annotations/instances_train2017.json"
    labels = json.loads(path.read_text())
    change_labels(labels)
    path.write_text(json.dumps(labels))


def test_images_are_counted(coco, tmp_path, capsys):
    assert check(coco, tmp_path) == {"train": 24, "val": 8, "classes": False}
    assert "AP on this set is not AP on COCO" in capsys.readouterr().out
    assert json.loads((tmp_path / "data.json").read_text())


def test_boxes_without_area_are_printed_and_accepted(coco, tmp_path, capsys):
    def flatten(labels):
        labels["annotations"][0]["bbox"][2] = 0

    change(coco, flatten)
    assert check(coco, tmp_path)["train"] == 24
    assert "box without area" in capsys.readouterr().out


def test_what_training_refuses_is_refused(coco, tmp_path):
    def move_to_unknown_image(labels):
        labels["annotations"][0]["image_id"] = 4711

    change(coco, move_to_unknown_image)
    with pytest.raises(DataError) as error:
        check(coco, tmp_path)
    assert "1 fault that training does not repair" in str(error.value)
    assert "instances_train2017.json" in str(error.value)
    assert "data.json" in str(error.value)


def test_a_missing_image_is_refused(coco, tmp_path, capsys):
    next((coco / "val2017").iterdir()).unlink()
    with pytest.raises(DataError, match="1 fault .*instances_val2017.json"):
        check(coco, tmp_path)
    assert "not in" in capsys.readouterr().out


def test_a_truncated_image_is_found_unless_only_headers_are_read(
    coco, tmp_path
):
    image = next((coco / "val2017").iterdir())
    image.write_bytes(image.read_bytes()[:-200])
    assert check(coco, tmp_path, quick=True)["val"] == 8
    with pytest.raises(DataError, match="1 fault"):
        check(coco, tmp_path, quick=False)
