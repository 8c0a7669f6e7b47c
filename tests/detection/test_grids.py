"""Grids without holes, at true aspect ratios."""

import pytest
import torch

from src.detection.grids import BORDER, cell_sizes, join_rows, row_lengths


@pytest.mark.parametrize("count", range(1, 13))
def test_rows_have_almost_equal_lengths(count):
    lengths = row_lengths(count, columns=3)
    assert sum(lengths) == count and max(lengths) <= 3
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("count", [1, 4, 5, 7, 9])
def test_pictures_of_any_number_fill_the_grid_and_keep_their_shapes(count):
    ratios = [(1.0, 1.5, 0.7, 2.0)[number % 4] for number in range(count)]
    sizes = cell_sizes(ratios, columns=3, width=900)
    rows = []
    for row in sizes:
        rows.append([torch.zeros(3, *size, dtype=torch.uint8) for size in row])
    grid = join_rows(rows, 900)
    assert grid.shape[2] == 900
    white = sum(BORDER * (len(row) + 1) * row[0][0] for row in sizes)
    white += BORDER * 900 * (len(sizes) + 1)
    assert int((grid[0] == 255).sum()) == white
    flat = [size for row in sizes for size in row]
    for ratio, (height, width) in zip(ratios, flat):
        assert width / height == pytest.approx(ratio, rel=0.02)


def test_extra_width_is_left_for_each_picture():
    ((one, other),) = cell_sizes([1.0, 1.0], 2, width=400, extra_width=10)
    assert one[1] + other[1] == 400 - 3 * BORDER - 2 * 10


def test_very_narrow_pictures_do_not_make_a_row_of_any_height():
    ((size,),) = cell_sizes([0.01], columns=3, width=500)
    assert size == (2 * (500 - 2 * BORDER), 10)
    assert join_rows([[torch.zeros(3, *size).byte()]], 500).shape[2] == 500
