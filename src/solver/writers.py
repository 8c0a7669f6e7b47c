"""Write the history of a run to the terminal, files and TensorBoard; `loggers/` has those of services."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..core.errors import first_line
from ..core.paths import read_text
from ..runtime.files import append_line, json_bytes, write_atomically
from ..runtime.log import logger
from ..runtime.own_files import is_ours, write_picture, write_png
from .curve_names import epoch_scalars
from .curves import draw_curves
from .results_table import Row, table_bytes, table_row
from .run_result import RunResult

LOG_FILE = "log.txt"
TABLE_FILE = "results.csv"
CURVES_FILE = "curves.png"
PICTURES = "pictures"

UNDEFINED = -1
"""Value of undefined metrics in the list of twelve COCO metrics, as in D-FINE's logs."""


class Writer(Protocol):
    """Destination for the history of a run."""

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values of one optimizer step."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Write the record of a completed epoch."""

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Write a picture `[3, H, W]` uint8 of an epoch."""

    def write_result(self, result: RunResult) -> None:
        """Write the result of a run that is complete; a run that was stopped or has failed has none."""

    def close(self) -> None:
        """Close the destination."""


class ConsoleWriter:
    """Log one readable line per epoch."""

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Do nothing: the progress bar shows steps."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Log the line of an epoch."""
        score = _score(record["best_score"])
        best_epoch = record["best_epoch"] + 1
        best = f"best {record['best_metric']} {score} (epoch {best_epoch})"
        memory = ""
        if record["peak_memory_mb"]:
            memory = f"  memory {record['peak_memory_mb'] / 1000:.1f} GB"
        logger.info(
            "epoch %d/%d  loss %.3f  AP %s  AP50 %s  %s  lr %.2e  %.1f images/s  waiting for data %.0f "
            "%%%s  left %s",
            epoch + 1,
            record["epochs"],
            record["train_loss"],
            _score(record["AP"]),
            _score(record["AP50"]),
            best,
            record["train_lr"],
            record["images_per_second"],
            100 * record["data_wait"],
            memory,
            format_seconds(record["seconds_left"]),
        )

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Do nothing: a terminal does not show pictures."""

    def write_result(self, result: RunResult) -> None:
        """Do nothing: the epochs have all values."""

    def close(self) -> None:
        """Do nothing."""


class JsonLinesWriter:
    """Write `log.txt` with one JSON object per epoch; only epochs that a resumed run repeats are replaced."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self.path = folder / LOG_FILE
        if not self.path.exists():
            return
        kept = ""
        for line in read_text(self.path).splitlines():
            if _epoch_of(line) < first_epoch:
                kept += f"{line}\n"
        write_atomically(self.path, lambda file: file.write(kept.encode()))

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Do nothing: only epochs are logged."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Append a line and flush it to disk."""
        append_line(self.path, json_bytes(record))

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Do nothing: pictures are not logged."""

    def write_result(self, result: RunResult) -> None:
        """Do nothing: the epochs have all values."""

    def close(self) -> None:
        """Do nothing."""


class TableWriter:
    """Write `results.csv` and `curves.png` after every epoch, from all records of the run in `log.txt`."""

    def __init__(
        self, folder: Path, first_epoch: int, best_metric: str = "AP"
    ) -> None:
        """Read the epochs so far, and remove those from the table that a resumed run repeats.

        Args:
            folder: output folder.
            first_epoch: next epoch, counted from 0; earlier ones are kept.
            best_metric: metric whose best epoch is highlighted in the curves.
        """
        self.table = folder / TABLE_FILE
        self.curves = folder / CURVES_FILE
        self.best_metric = best_metric
        self.rows = _rows_before(folder / LOG_FILE, first_epoch)
        if self.rows:
            self._write()

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Do nothing: only epochs are written."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Add the row of an epoch, and write both files again."""
        self.rows.append(table_row(record))
        self._write()

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Do nothing: pictures are not part of the table."""

    def write_result(self, result: RunResult) -> None:
        """Do nothing: the epochs have all values."""

    def close(self) -> None:
        """Do nothing."""

    def _write(self) -> None:
        if _may_be_replaced(self.table):
            content = table_bytes(self.rows)
            write_atomically(self.table, lambda file: file.write(content))
        if _may_be_replaced(self.curves):
            write_png(self.curves, draw_curves(self.rows, self.best_metric))


def _rows_before(log: Path, first_epoch: int) -> list[Row]:
    """Return the rows of the epochs before `first_epoch` in `log.txt`; other lines are ignored."""
    if not log.exists():
        return []
    rows: dict[int, Row] = {}
    for line in read_text(log).splitlines():
        epoch = _epoch_of(line)
        if 0 <= epoch < first_epoch:
            row = table_row(json.loads(line))
            rows[row["epoch"]] = row
    return [rows[epoch] for epoch in sorted(rows)]


def _may_be_replaced(path: Path) -> bool:
    """Return whether a result can be written to `path`; log a warning if a foreign file is there."""
    if os.path.lexists(path) and not is_ours(path):
        logger.warning(
            "%s was not written by this project and is not replaced", path
        )
        return False
    return True


class PictureFolder:
    """Write pictures as JPEG files to `pictures/`, for users without TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PICTURES

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Do nothing: only pictures are written."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Do nothing: only pictures are written."""

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Write `NAME_epoch0001.jpg`, with epochs counted from 1."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}_epoch{epoch + 1:04}.jpg"
        if not _may_be_replaced(path):
            return
        image = Image.fromarray(picture.permute(1, 2, 0).numpy())
        write_picture(path, image, quality=90)

    def write_result(self, result: RunResult) -> None:
        """Do nothing: only pictures are written."""

    def close(self) -> None:
        """Do nothing."""


class TensorBoardWriter:
    """Write curves and pictures for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Add the evaluation of an epoch, at its number counted from 1."""
        for name, value in epoch_scalars(record).items():
            self._writer.add_scalar(name, value, epoch + 1)
        self._writer.flush()

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Add a picture."""
        self._writer.add_image(f"images/{name}", picture, epoch + 1)

    def write_result(self, result: RunResult) -> None:
        """Add the metrics of the best epoch as `best/AP` and so on, at this epoch."""
        for name, value in result.metrics.items():
            self._writer.add_scalar(f"best/{name}", value, result.epoch)

    def add_text(self, name: str, text: str) -> None:
        """Add a text such as the configuration."""
        self._writer.add_text(name, f"```yaml\n{text}\n```")

    def close(self) -> None:
        """Flush all events to disk."""
        self._writer.close()


def open_tensorboard(folder: Path, config: str) -> TensorBoardWriter | None:
    """Open the TensorBoard writer of a run, and add its configuration as a text.

    Args:
        folder: folder for the event files.
        config: configuration as YAML.

    Returns:
        The writer; None, with a warning, if the folder's name is not valid UTF-8, which TensorBoard requires.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        logger.warning(
            "TensorBoard curves are not written: folder names must be valid UTF-8, found %s; log.txt has "
            "all values",
            str(folder).encode(errors="backslashreplace").decode(),
        )
        return None
    writer = TensorBoardWriter(folder)
    writer.add_text("config", config)
    return writer


class GuardedWriter:
    """Keep a run going if one of its writers fails, for example because the disk is full."""

    def __init__(self, writer: Writer, name: str) -> None:
        """Store the arguments.

        Args:
            writer: writer that may fail.
            name: its name for the warning, which is logged once.
        """
        self.writer = writer
        self.name = name
        self._has_warned = False

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the values of a step."""
        self._try("write_step", step, scalars)

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Write the record of an epoch."""
        self._try("write_epoch", epoch, record)

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Write a picture."""
        self._try("write_picture", epoch, name, picture)

    def write_result(self, result: RunResult) -> None:
        """Write the result."""
        self._try("write_result", result)

    def close(self) -> None:
        """Close the destination."""
        self._try("close")

    def _try(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self.writer, method)(*arguments)
        except Exception as error:
            level = "debug" if self._has_warned else "warning"
            self._has_warned = True
            getattr(logger, level)(
                "%s is incomplete: %s. The training is not affected; log.txt has all values of epochs",
                self.name,
                first_line(error),
            )


def format_seconds(seconds: float) -> str:
    """Format a duration as h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _score(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _epoch_of(line: str) -> float:
    try:
        epoch = json.loads(line)["epoch"]
    except (json.JSONDecodeError, KeyError, TypeError):
        epoch = None
    # minus infinity keeps lines that are not records
    return epoch if isinstance(epoch, int) else float("-inf")
