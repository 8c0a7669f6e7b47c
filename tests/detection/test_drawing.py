import numpy as np
import torch

from src.detection.drawing import (
    GAP,
    LEAST_SIDE,
    LONGEST_NAME,
    DrawnObjects,
    draw_boxes,
    draw_pair,
    side_by_side,
)

NAMES = {0: "cat", 1: "dog"}


def grey(height: int, width: int) -> torch.Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def test_a_picture_without_boxes_stays_as_it_is():
    image = grey(400, 500)
    assert torch.equal(
        draw_boxes(
            image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), NAMES
        ),
        image,
    )


def test_small_pictures_are_enlarged_so_that_names_can_be_read():
    drawn = draw_boxes(
        grey(100, 200),
        torch.tensor([[10.0, 10, 50, 50]]),
        torch.tensor([0]),
        NAMES,
    )
    assert drawn.shape == (3, 400, 800) and min(drawn.shape[1:]) >= LEAST_SIDE


def test_a_box_is_drawn_where_it_is():
    drawn = draw_boxes(
        grey(400, 400),
        torch.tensor([[100.0, 150, 300, 350]]),
        torch.tensor([1]),
        NAMES,
        torch.tensor([0.9]),
    )
    changed = (drawn != 128).any(0)
    rows, columns = (
        changed.any(1).nonzero().flatten(),
        changed.any(0).nonzero().flatten(),
    )
    assert (
        abs(columns.min() - 100) <= 2
        and abs(columns.max() - 300) <= 2
        and abs(rows.max() - 350) <= 2
    )


def test_labels_without_a_name_are_drawn_as_numbers():
    draw_boxes(
        grey(400, 400),
        torch.tensor([[100.0, 150, 300, 350]]),
        torch.tensor([17]),
        NAMES,
    )


def test_names_keep_their_colours():
    def colour(label: int, others: int) -> list[int]:
        boxes = torch.tensor(
            [[100.0 + 10 * i, 150, 300, 350] for i in range(others + 1)]
        )
        return draw_boxes(
            grey(400, 400), boxes, torch.tensor([label] + [0] * others), NAMES
        )[:, 340, 100].tolist()

    assert colour(1, 0) == colour(1, 3) != colour(0, 0)


def test_pictures_stand_side_by_side_with_a_white_gap():
    row = side_by_side([grey(10, 20), grey(10, 30)])
    assert row.shape == (3, 10, 50 + GAP)
    assert (row[:, :, 20 : 20 + GAP] == 255).all()


def test_huge_and_hostile_names_are_drawn_cut_and_printable():
    box = torch.tensor([[10.0, 10, 60, 60]])
    huge, cut = (
        draw_boxes(
            torch.zeros(3, 320, 320, dtype=torch.uint8),
            box,
            torch.tensor([0]),
            {0: "x" * length},
        )
        for length in (1_000_000, LONGEST_NAME)
    )
    assert torch.equal(huge, cut)


def test_truth_and_predictions_are_drawn_on_pictures_of_their_own():
    image = grey(400, 400)
    truth = DrawnObjects.of_labels(
        np.array([[100.0, 150, 300, 350]]), np.array([1]), NAMES
    )
    found = DrawnObjects.of_rows(
        np.array([[100.0, 150, 200, 200, 0.9, 1]]), NAMES
    )
    assert torch.equal(found.boxes_xyxy, truth.boxes_xyxy)
    left, right = draw_pair(image, truth, found)
    assert torch.equal(
        left, draw_boxes(image, truth.boxes_xyxy, truth.labels, NAMES)
    )
    assert torch.equal(
        right,
        draw_boxes(
            image,
            truth.boxes_xyxy,
            truth.labels,
            NAMES,
            torch.tensor([0.9]).double(),
        ),
    )
