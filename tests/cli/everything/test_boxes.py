"""The speed of loading many boxes is measured with all transforms."""

import json

from src.cli.everything import boxes
from src.cli.everything.figures import Settings


def test_figure_names_the_work_and_has_a_target(tmp_path):
    figure = boxes.measured_boxes(Settings(tmp_path, repeats=1), 2, 30)
    assert figure.row == 7
    assert figure.work == "30 boxes in each image, training with all transforms"
    assert (figure.target, figure.at_least) == (boxes.TARGET, True)
    assert figure.value > 0


def test_images_have_the_boxes_inside(tmp_path):
    boxes.measured_boxes(Settings(tmp_path, repeats=1), 2, 30)
    labels = json.loads((tmp_path / "inputs" / "train.json").read_text())
    assert len(labels["annotations"]) == 60
    for record in labels["annotations"]:
        x, y, width, height = record["bbox"]
        assert x >= 0 and x + width <= boxes.SIZE[0]
        assert y >= 0 and y + height <= boxes.SIZE[1]
