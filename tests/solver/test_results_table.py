"""The rows of results.csv."""

import csv
import io
import math

from src.solver.results_table import (
    FIRST_COLUMNS,
    columns_of,
    table_bytes,
    table_row,
)

RECORD = {
    "epoch": 4,
    "stage": 1,
    "train_loss": 3.5,
    "train_loss_vfl": 1.0,
    "train_loss_vfl_aux_0": 2.0,
    "train_loss_bbox": 0.5,
    "train_lr": 1e-3,
    "learning_rates": {"backbone.vit": 1e-5, "default": 1e-3},
    "AP": 0.123456789,
    "AP_small": None,
    "seconds": 12.0,
    "images_per_second": 40.0,
    "AP_of_class": {"1": 0.5},
}


def test_losses_are_summed_by_kind_and_rates_have_their_group():
    row = table_row(RECORD)
    assert (row["epoch"], row["loss"]) == (5, 3.5)
    assert row["loss_vfl"] + row["loss_bbox"] == row["loss"]
    assert (row["lr_backbone.vit"], row["lr_default"]) == (1e-5, 1e-3)
    assert (row["seconds"], row["images_per_second"]) == (12.0, 40.0)


def test_a_record_of_an_earlier_version_has_a_row():
    row = table_row({"epoch": 0, "AP": 0.5})
    assert row["epoch"] == 1 and row["AP"] == 0.5
    assert set(row) == set(FIRST_COLUMNS)


def test_a_new_loss_does_not_move_other_columns():
    later = table_row(RECORD | {"train_loss_gram": 1.0})
    first = table_row(RECORD)
    assert columns_of([first, later]) == [*columns_of([first]), "loss_gram"]


def test_cells_are_short_and_empty_where_a_value_is_undefined():
    text = table_bytes([table_row(RECORD)]).decode()
    (cells,) = csv.DictReader(io.StringIO(text))
    assert (cells["AP"], cells["AP_small"]) == ("0.123457", "")
    assert (cells["seconds"], cells["lr_backbone.vit"]) == ("12", "1e-05")


def test_numbers_that_are_not_finite_are_written():
    text = table_bytes([table_row(RECORD | {"train_loss": math.nan})]).decode()
    (cells,) = csv.DictReader(io.StringIO(text))
    assert math.isnan(float(cells["loss"]))


def test_a_row_without_a_column_of_other_rows_has_an_empty_cell():
    rows = [table_row({"epoch": 0}), table_row(RECORD)]
    cells = list(csv.DictReader(io.StringIO(table_bytes(rows).decode())))
    assert cells[0]["loss_vfl"] == "" and cells[1]["loss_vfl"] == "3"
