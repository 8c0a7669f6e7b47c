"""Grids of training images with boxes, and of predictions next to the ground truth."""

import dataclasses

import numpy as np
import pytest
import torch

from src.core.detection_data import Picture
from src.core.ground_truth import Objects
from src.detection.grids import BORDER
from src.detection.pairs import GAP
from src.solver import pictures
from src.solver.pictures import (
    WIDTH,
    _training_caption,
    has_pictures,
    training_grid,
    validation_grid,
)
from tests.fixtures.tiny import tiny_config

NAMES = {0: "cat", 1: "dog"}


def target(*boxes: list[float]) -> dict:
    return {
        "boxes": torch.tensor(boxes).view(-1, 4),
        "labels": torch.zeros(len(boxes), dtype=torch.int64),
    }


def test_boxes_are_drawn_where_they_are():
    images = torch.full((1, 3, 320, 320), 0.5)
    drawn, plain = (
        training_grid(images, [t], NAMES)
        for t in (target([0.5, 0.5, 0.5, 0.25]), target())
    )
    # one picture fills the width of the grid, below its caption
    side = 3 * WIDTH + 2 * BORDER
    changed = (drawn != plain).any(0)[-side - BORDER : -BORDER].nonzero()
    rows, columns = changed[:, 0], changed[:, 1] - BORDER
    assert columns.min() == pytest.approx(side / 4, abs=2)
    assert columns.max() == pytest.approx(side * 3 / 4, abs=2)
    assert rows.max() == pytest.approx(side * 5 / 8, abs=2)


def test_nine_images_stand_in_rows_of_three():
    dark = torch.zeros(12, 3, 64, 128)
    grid = training_grid(dark, [target()] * 12, NAMES)
    _, height, width = grid.shape
    caption = (height - 3 * (WIDTH // 2 + BORDER) - BORDER) / 3
    assert width == 3 * (WIDTH + BORDER) + BORDER
    assert caption == int(caption) and 9 <= caption <= 20
    for row in range(3):
        bottom = (row + 1) * (int(caption) + WIDTH // 2 + BORDER)
        for column in range(3):
            left = BORDER + column * (WIDTH + BORDER)
            picture = grid[:, bottom - WIDTH // 2 : bottom, left : left + WIDTH]
            assert picture.max() == 0


def test_captions_count_the_boxes_and_name_the_image():
    assert _training_caption(target([0.5, 0.5, 0.1, 0.1])) == "1 box"
    known = {**target(), "image_id": torch.tensor([7])}
    assert _training_caption(known) == "image id 7: 0 boxes"


def test_normalised_images_are_converted_back_for_display():
    image = (
        torch.linspace(-2, 3, 64 * 64).view(1, 1, 64, 64).expand(1, 3, -1, -1)
    )
    grid = training_grid(image, [target()], NAMES)[:, -300:-BORDER, 100:-100]
    assert grid.float().mean() > 140 and grid.max() > 250
    whole = training_grid(image, [target()], NAMES)
    side = 3 * WIDTH + 2 * BORDER
    assert whole[:, -side - BORDER : -BORDER, BORDER:-BORDER].min() < 5


def test_truth_and_predictions_of_the_same_images_stand_side_by_side(tiny_data):
    dataset = tiny_config(tiny_data).val_dataloader.dataset
    ids = dataset.labels.image_ids.tolist()
    nothing = {i: np.zeros((0, 6)) for i in ids}
    something = {
        i: np.array([[4, 4, 20, 20, 0.9, 1], [30, 30, 20, 20, 0.1, 1.0]])
        for i in ids
    }
    plain, drawn, all_drawn = (
        validation_grid(dataset, found, threshold)
        for found, threshold in (
            (nothing, None),
            (something, 0.5),
            (something, 0.0),
        )
    )
    width = 2 * (2 * WIDTH + GAP + BORDER) + BORDER
    assert plain.shape == drawn.shape and plain.shape[2] == width
    without_captions = 3 * (WIDTH + BORDER) + BORDER
    assert without_captions < plain.shape[1] < without_captions + 3 * 50
    half = BORDER + WIDTH
    assert (
        torch.equal(plain[..., :half], drawn[..., :half])
        and not torch.equal(plain, drawn)
        and not torch.equal(drawn, all_drawn)
    )


def test_without_detections_there_is_no_picture(tiny_data):
    assert (
        validation_grid(tiny_config(tiny_data).val_dataloader.dataset, {}, None)
        is None
    )


@dataclasses.dataclass
class Box:
    """Data with one image and one box, as far as `validation_grid` uses it."""

    ignored: bool = False
    label_names = {0: "cat", 1: "dog"}
    label_of_category = torch.tensor([0, 1])
    detection_ids = [3, 8]
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    boxes = torch.tensor([[20.0, 20, 60, 60]])

    def __len__(self) -> int:
        return 1

    def image_id(self, index: int) -> int:
        return 5

    def image_name(self, index: int) -> str:
        return "a.jpg"

    def picture(self, index: int) -> Picture:
        kept = [] if self.ignored else [0]
        return Picture(self.image, self.boxes[kept], torch.tensor([1])[kept])

    def objects(self, index: int) -> Objects:
        ignored = torch.tensor([self.ignored])
        return Objects(self.boxes, torch.tensor([1]), ignored)


@pytest.mark.parametrize(
    ("row", "ignored", "outcome"),
    [
        ([20, 20, 40, 40, 0.9, 8], False, (1, 0, 0)),
        ([20, 20, 40, 40, 0.9, 3], False, (0, 1, 1)),
        ([20, 20, 20, 20, 0.9, 8], True, (0, 0, 0)),
    ],
    ids=["same class", "another class", "in a crowd"],
)
def test_detections_are_compared_with_objects_by_category_id(
    monkeypatch, row, ignored, outcome
):
    pairs = []
    monkeypatch.setattr(
        pictures,
        "captioned_pair",
        lambda pair, size: pairs.append(pair) or pair.image,
    )
    validation_grid(Box(ignored), {5: np.array([row])}, 0.5)
    found = pairs[0].outcomes
    assert (found.correct, found.false, found.missed) == outcome
    assert found.drawn.names[int(found.drawn.labels[0])] in ("cat", "dog")


def test_detections_below_the_threshold_are_not_compared(monkeypatch):
    pairs = []
    monkeypatch.setattr(
        pictures,
        "captioned_pair",
        lambda pair, size: pairs.append(pair) or pair.image,
    )
    row = [20, 20, 40, 40, 0.45, 8]
    for best_f1 in (None, 0.45, 0.5):
        validation_grid(Box(), {5: np.array([row])}, best_f1)
    assert [pair.outcomes.correct for pair in pairs] == [1, 1, 0]
    assert [pair.threshold for pair in pairs] == [0.4, 0.45, 0.5]


def test_images_of_different_shapes_keep_their_aspect_ratios(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        pictures,
        "captioned_pair",
        lambda pair, size: (
            sizes.append(size) or torch.zeros(3, size[0], 2 * size[1] + GAP)
        ),
    )
    shapes = [(100, 200), (200, 100), (50, 50)]
    data = [Box() for _ in shapes]
    for box, (height, width) in zip(data, shapes):
        box.image = torch.zeros(3, height, width, dtype=torch.uint8)

    class Several(Box):
        def __len__(self) -> int:
            return len(data)

        def picture(self, index: int) -> Picture:
            return data[index].picture(0)

    nothing = np.zeros((0, 6))
    validation_grid(Several(), {5: nothing}, None)
    for (height, width), (shown_height, shown_width) in zip(shapes, sizes):
        expected = width / height
        assert shown_width / shown_height == pytest.approx(expected, rel=0.02)


def test_pictures_are_made_in_the_first_and_last_epoch_and_a_few_between():
    assert [epoch for epoch in range(72) if has_pictures(epoch, 72)] == [
        *range(0, 72, 7),
        71,
    ]
    assert all(has_pictures(epoch, 5) for epoch in range(5))
