"""The table `results.csv`: one row per epoch, for spreadsheets and pandas.

All rows are made from the records in `log.txt`, and the file is replaced as a whole after every epoch. A run
that is resumed or killed at any time therefore has each epoch once.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core.coco_metrics import METRICS
from ..runtime.own_files import TABLE_HEADER
from .curve_names import sums_by_kind

Row = dict[str, Any]
"""Values of an epoch by column; None is undefined."""

METRIC_COLUMNS = (
    *METRICS,
    "F1",
    "F1_threshold",
    "F1_precision",
    "F1_recall",
)

FIRST_COLUMNS = (
    "epoch",
    "stage",
    "loss",
    *METRIC_COLUMNS,
    "lr",
    "seconds",
    "images_per_second",
    "data_wait",
    "peak_memory_mb",
)
"""Columns of every table, in this order; losses by kind and learning rates by group follow."""

LOSS = "loss_"
"""Start of the columns of losses by kind."""

RATE = "lr_"
"""Start of the columns of learning rates by parameter group."""

DIGITS = 6
"""Significant digits of numbers."""

_NOT_TERMS = {"train_lr", "train_loss"}


def table_row(record: Mapping[str, Any]) -> Row:
    """Return the row of an epoch.

    Args:
        record: record of `log.txt` (`run_log.epoch_record`), whose epochs count from 0.

    Returns:
        Values by column; epochs count from 1. The losses by kind add up to `loss`.
    """
    losses = {}
    for key, value in record.items():
        if key.startswith("train_") and key not in _NOT_TERMS:
            losses[key.removeprefix("train_")] = value
    row: Row = {
        "epoch": record["epoch"] + 1,
        "stage": record.get("stage"),
        "loss": record.get("train_loss"),
    }
    for name in METRIC_COLUMNS:
        row[name] = record.get(name)
    row["lr"] = record.get("train_lr")
    for name in ("seconds", "images_per_second", "data_wait", "peak_memory_mb"):
        row[name] = record.get(name)
    for kind, value in sums_by_kind(losses).items():
        row[LOSS + kind] = value
    for group, rate in (record.get("learning_rates") or {}).items():
        row[RATE + group] = rate
    return row


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Return the columns of a table: a new column comes last, so that no other column moves."""
    columns = dict.fromkeys(FIRST_COLUMNS)
    for row in rows:
        columns |= dict.fromkeys(row)
    return list(columns)


def table_bytes(rows: Sequence[Row]) -> bytes:
    """Return the rows as CSV in UTF-8; undefined values are empty cells."""
    columns = columns_of(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    content = text.getvalue()
    assert content.startswith(TABLE_HEADER), "the file would not be recognized"
    return content.encode(errors="backslashreplace")


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        is_whole = math.isfinite(value) and value == int(value)
        if is_whole and abs(value) < 10**DIGITS:
            return int(value)
        return f"{value:.{DIGITS}g}"
    return value
