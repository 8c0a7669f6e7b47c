"""The result of a run, as its writers get it: the metrics of the best epoch, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.paths import read_text
from .curve_names import AP_TAGS


@dataclass(frozen=True)
class RunResult:
    """The result of a run."""

    epoch: int | None
    """Epoch of `best.pth`, from 1; None if no evaluation had a score."""
    metrics: Mapping[str, float]
    """Defined metrics of this epoch by name, such as "AP"."""
    report: Path | None = None
    """`report.html`; None if it was not written."""


def result_of_log(log: Path, report: Path | None = None) -> RunResult:
    """Return the result of a run from the records in `log.txt`.

    Args:
        log: path of `log.txt`.
        report: path of the report; it is left out if there is no such file.
    """
    if report is not None and not report.is_file():
        report = None
    record = _best_record(log)
    if record is None:
        return RunResult(None, {}, report)
    metrics = {}
    for name in AP_TAGS:
        if record.get(name) is not None:
            metrics[name] = record[name]
    return RunResult(record["epoch"] + 1, metrics, report)


def _best_record(log: Path) -> dict[str, Any] | None:
    """Return the record of the best epoch, as the last record names it."""
    records: dict[int, dict[str, Any]] = {}
    best = None
    lines = read_text(log).splitlines() if log.is_file() else []
    for line in lines:
        try:
            record = json.loads(line)
            epoch = record["epoch"]
        except (ValueError, KeyError, TypeError):
            continue
        if not isinstance(epoch, int):
            continue  # not a record
        records[epoch] = record
        best = record.get("best_epoch")
    return records.get(best) if isinstance(best, int) else None
