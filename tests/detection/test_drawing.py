import numpy as np
import pytest
import torch
from PIL import ImageFont

from src.detection.drawing import (
    LEAST_SIDE,
    LONGEST_NAME,
    DrawnObjects,
    LineStyle,
    draw_at_size,
    draw_boxes,
    draw_outline,
    font_size,
    line_width,
)
from src.detection.palette import BLACK, WHITE, class_colour

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


def test_detections_of_an_evaluation_are_drawn_like_ground_truth_with_scores():
    truth = DrawnObjects.of_labels(
        np.array([[100.0, 150, 300, 350]]), np.array([1]), NAMES
    )
    found = DrawnObjects.of_rows(
        np.array([[100.0, 150, 200, 200, 0.9, 1]]), NAMES
    )
    assert torch.equal(found.boxes_xyxy, truth.boxes_xyxy)
    assert torch.equal(found.labels, truth.labels)
    assert found.scores.tolist() == [0.9] and truth.scores is None


def outline(style: LineStyle) -> np.ndarray:
    """Return where the outline of a box of 200 x 100 pixels is drawn in red."""
    pixels = np.zeros((120, 220, 3), np.uint8)
    box = np.array([10, 10, 210, 110])
    draw_outline(pixels, box, (255, 0, 0), 2, style)
    return (pixels == (255, 0, 0)).all(2)


def test_line_styles_differ_in_the_part_of_the_line_that_is_drawn():
    parts = []
    for style in (LineStyle.SOLID, LineStyle.DASHED, LineStyle.DOTTED):
        parts.append(outline(style)[10, 10:210].mean())
    assert parts[0] == 1
    assert parts[1] == pytest.approx(5 / 8, abs=0.05)
    assert parts[2] == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("style", LineStyle)
def test_corners_are_drawn_in_every_style(style):
    drawn = outline(style)
    for row in (10, 109):
        for column in (10, 209):
            assert drawn[row, column]


def test_dots_are_drawn_on_a_white_line():
    pixels = np.zeros((50, 50, 3), np.uint8)
    draw_outline(
        pixels, np.array([0, 0, 50, 50]), (255, 0, 0), 2, LineStyle.DOTTED
    )
    colours = {tuple(colour) for colour in pixels[0].tolist()}
    assert colours == {(255, 0, 0), (255, 255, 255)}


def test_labels_have_a_fill_for_each_style():
    image = grey(400, 400)
    box, label = torch.tensor([[100.0, 150, 300, 350]]), torch.tensor([1])
    fills = []
    for style in (LineStyle.SOLID, LineStyle.DASHED, LineStyle.DOTTED):
        drawn = draw_boxes(image, box, label, NAMES, styles=[style])
        # the second row and column of the label, beside its text
        rows = (drawn[:, :150, 101] != 128).any(0).nonzero().flatten()
        fills.append(tuple(drawn[:, int(rows[0]) + 1, 101].tolist()))
    assert fills == [class_colour(1), BLACK, WHITE]


def test_lines_and_text_grow_with_the_picture():
    sizes = [(320, 320), (480, 640), (1080, 1920), (3000, 4000)]
    fonts = [font_size(*size) for size in sizes]
    lines = [line_width(*size) for size in sizes]
    assert fonts == sorted(set(fonts)) and fonts[0] >= 11 and fonts[-1] >= 40
    assert lines == sorted(lines) and lines[0] == 2 and lines[-1] >= 8


@pytest.mark.parametrize("side", [320, 1500, 4000])
def test_labels_stay_inside_the_picture(side):
    """A box in each corner and one that is larger than the picture."""
    end = float(side)
    boxes = torch.tensor(
        [
            [-5.0, -5, 20, 20],
            [end - 20, -5, end + 5, 20],
            [-5, end - 20, 20, end + 5],
            [end - 20, end - 20, end + 5, end + 5],
            [-50, -50, end + 50, end + 50],
        ]
    )
    drawn = draw_boxes(
        grey(side, side), boxes, torch.zeros(5, dtype=torch.long), NAMES
    )
    ink = (drawn < 60).all(0)  # text, with its smooth edges
    height = font_size(side, side)
    for rows in (slice(0, 6 * height), slice(-6 * height, None)):
        for columns in (slice(0, 8 * height), slice(-8 * height, None)):
            assert ink[rows, columns].sum() > height


def test_odd_boxes_are_drawn_without_an_error():
    nan, infinity = float("nan"), float("inf")
    boxes = torch.tensor(
        [
            [300.0, 300, 100, 100],
            [5, 5, 5, 5],
            [nan, 0, 10, 10],
            [-infinity, 0, infinity, 20],
            [1000, 1000, 2000, 2000],
        ]
    )
    drawn = draw_boxes(
        grey(400, 400), boxes, torch.zeros(5, dtype=torch.long), NAMES
    )
    assert drawn.shape == (3, 400, 400)


def test_the_image_itself_is_not_changed():
    image = grey(400, 400)
    draw_boxes(
        image, torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([0]), NAMES
    )
    assert (image == 128).all()


def test_a_picture_of_another_size_has_its_boxes_in_the_same_place():
    objects = DrawnObjects(
        torch.tensor([[100.0, 50, 300, 150]]), torch.tensor([0]), NAMES
    )
    drawn = draw_at_size(grey(200, 400), objects, (400, 600))
    changed = (drawn != 128).any(0)
    columns = changed.any(0).nonzero().flatten()
    rows = changed.any(1).nonzero().flatten()
    assert drawn.shape == (3, 400, 600)
    assert columns.min() == 150 and columns.max() == 449 and rows.max() == 299


def test_a_score_that_is_not_a_number_is_not_shown():
    box, label = torch.tensor([[100.0, 150, 300, 350]]), torch.tensor([0])
    nan = torch.tensor([float("nan")])
    assert torch.equal(
        draw_boxes(grey(400, 400), box, label, NAMES, nan),
        draw_boxes(grey(400, 400), box, label, NAMES),
    )


def test_further_pictures_load_no_font_and_measure_no_text(monkeypatch):
    image, boxes = grey(400, 400), torch.tensor([[10.0, 20, 200, 220]])
    label, score = torch.tensor([0]), torch.tensor([0.7])
    first = draw_boxes(image, boxes, label, NAMES, score)

    def again(*args, **kwargs):
        pytest.fail("it is known from the first picture")

    for name in ("load_default", "truetype"):
        monkeypatch.setattr(ImageFont, name, again)
    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", again)
    assert torch.equal(first, draw_boxes(image, boxes, label, NAMES, score))
