"""Where the history of a run goes: the terminal, `log.txt`, TensorBoard, wandb."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from ..core.paths import read_text
from ..runtime.files import append_line, json_bytes, write_atomically
from ..runtime.log import logger
from ..runtime.optional import import_optional
from ..runtime.own_files import is_ours, write_picture

LOG_FILE, PICTURES = "log.txt", "pictures"

UNDEFINED = -1
"""In D-FINE's list of COCO's twelve numbers, in place of one that the labels do not define."""


class Writer(Protocol):
    """A destination."""

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take numbers of one optimizer step."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Take everything about an epoch that has ended."""

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Take a picture `[3, H, W]` uint8 of an epoch."""

    def close(self) -> None:
        """Finish."""


class ConsoleWriter:
    """One line an epoch that a person can read."""

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Steps are shown by the progress bar."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Log the line."""
        best = (
            f"best {record['best_metric']} {_share(record['best_score'])} (epoch {record['best_epoch'] + 1})"
        )
        memory = f"  memory {record['peak_memory_mb'] / 1024:.1f} GB" if record["peak_memory_mb"] else ""
        logger.info(
            "epoch %d/%d  loss %.3f  AP %s  AP50 %s  %s  lr %.2e  %.1f images/s  waiting for data %.0f %%%s  left %s",
            epoch + 1,
            record["epochs"],
            record["train_loss"],
            _share(record["AP"]),
            _share(record["AP50"]),
            best,
            record["train_lr"],
            record["images_per_second"],
            100 * record["data_wait"],
            memory,
            format_seconds(record["seconds_left"]),
        )

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """A terminal shows none."""

    def close(self) -> None:
        """Nothing to finish."""


class JsonLinesWriter:
    """`log.txt`: one JSON object an epoch, never rewritten but for epochs that a resumed run does again."""

    def __init__(self, folder: Path, first_epoch: int) -> None:
        self.path = folder / LOG_FILE
        if self.path.exists():
            lines = [line for line in read_text(self.path).splitlines() if _epoch_of(line) < first_epoch]
            write_atomically(
                self.path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode())
            )

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Steps are not kept here."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Append a line and bring it to disk."""
        append_line(self.path, json_bytes(record))

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Pictures are not kept here."""

    def close(self) -> None:
        """Nothing to finish."""


class PictureFolder:
    """`pictures/`: JPEG files for those who open no TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / PICTURES

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Numbers are not kept here."""

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Numbers are not kept here."""

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Write `NAME_epoch0001.jpg`, epochs counted from 1."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"{name}_epoch{epoch + 1:04}.jpg"
        if os.path.lexists(path) and not is_ours(path):
            logger.warning("%s is not a picture of this project and is left as it is", path)
            return
        write_picture(path, Image.fromarray(picture.permute(1, 2, 0).numpy()), quality=90)

    def close(self) -> None:
        """Nothing to finish."""


class TensorBoardWriter:
    """Curves and pictures for TensorBoard."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add a point to each curve."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Add the evaluation."""
        points = {f"Test/coco_eval_bbox_{i}": value for i, value in enumerate(record["test_coco_eval_bbox"])}
        points |= {
            f"Epoch/{name}": record[name]
            for name in ("AP", "AP50", "train_loss", "images_per_second", "data_wait")
        }
        for name, value in points.items():
            if value is not None and value != UNDEFINED:
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Add a picture."""
        self._writer.add_image(f"Images/{name}", picture, epoch)

    def add_text(self, name: str, text: str) -> None:
        """Add a text such as the configuration."""
        self._writer.add_text(name, f"```yaml\n{text}\n```")

    def close(self) -> None:
        """Bring everything to disk."""
        self._writer.close()


def open_tensorboard(folder: Path, config: str) -> TensorBoardWriter | None:
    """Start the curves of a run, with its configuration as a text.

    Args:
        folder: for the event files.
        config: YAML text of the configuration.

    Returns:
        The writer, or None with a warning if TensorBoard cannot write there: it takes names in UTF-8 only.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        logger.warning(
            "no curves are written for TensorBoard, whose folders must have names in UTF-8: %s; log.txt has every number",
            str(folder).encode(errors="backslashreplace").decode(),
        )
        return None
    writer = TensorBoardWriter(folder)
    writer.add_text("config", config)
    return writer


class WandbWriter:
    """Curves for Weights & Biases, if the user has installed and asked for it."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: Path) -> None:
        wandb = import_optional("wandb")
        self._run = wandb.init(project=project, name=name, config=dict(config), dir=str(folder))

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the curves."""
        self._run.log(dict(scalars), step=step)

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Send the evaluation."""
        self._run.log(
            {f"epoch/{key}": value for key, value in record.items() if isinstance(value, int | float)}
        )

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Send a picture."""
        import wandb

        self._run.log({f"images/{name}": wandb.Image(picture.permute(1, 2, 0).numpy())})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def format_seconds(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _share(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("-inf")  # not ours: keep it
