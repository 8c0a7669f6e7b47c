"""Grids of training images with boxes, and of predictions next to the ground truth."""

import numpy as np
import pytest
import torch

from src.solver.pictures import (
    WIDTH,
    _fitted,
    _grid,
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
    changed = (drawn != plain).any(0).nonzero()
    assert changed[:, 1].min() == pytest.approx(80, abs=2) and changed[
        :, 1
    ].max() == pytest.approx(240, abs=2)
    assert changed[:, 0].max() == pytest.approx(200, abs=2)


def test_nine_images_stand_in_rows_of_three():
    assert training_grid(
        torch.rand(12, 3, 64, 128), [target()] * 12, NAMES
    ).shape == (
        3,
        3 * (WIDTH // 2 + 4) + 4,
        3 * (WIDTH + 4) + 4,
    )


def test_normalised_images_are_converted_back_for_display():
    image = (
        torch.linspace(-2, 3, 64 * 64).view(1, 1, 64, 64).expand(1, 3, -1, -1)
    )
    grid = training_grid(image, [target()], NAMES)[:, 4:-4, 4:-4]
    assert grid.min() < 5 and grid.max() > 250


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
    assert (
        plain.shape
        == drawn.shape
        == (3, 3 * (WIDTH + 4) + 4, 2 * (2 * WIDTH + 8 + 4) + 4)
    )
    half = 4 + WIDTH
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


def test_images_of_different_shapes_share_a_grid():
    pictures = [
        _fitted(torch.zeros(3, *size, dtype=torch.uint8))
        for size in ((32, 64), (64, 32))
    ]
    assert _grid(pictures, 2).shape == (3, 2 * WIDTH + 8, 2 * (WIDTH + 4) + 4)


def test_pictures_are_made_in_the_first_and_last_epoch_and_a_few_between():
    assert [epoch for epoch in range(72) if has_pictures(epoch, 72)] == [
        *range(0, 72, 7),
        71,
    ]
    assert all(has_pictures(epoch, 5) for epoch in range(5))
