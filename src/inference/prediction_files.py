"""Common parts of jobs for images and videos: the file of predictions, and checks of output paths."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..core.counts import counted
from ..core.errors import ResourceError
from ..runtime.files import json_bytes, temporary_path
from ..runtime.log import logger

PREDICTIONS = "predictions.json"

ADVICE = "choose another --output"
"""End of messages about results that would replace other files."""


class PredictionFile:
    """A context manager that writes `predictions.json` entry by entry.

    The file is created under its name when the block ends. If the job ends early for any reason, the
    predictions so far are kept.
    """

    def __init__(self, folder: Path) -> None:
        """Store the path; the folder must exist when the block begins."""
        self.path = folder / PREDICTIONS
        self.num_images = 0
        self.num_entries = 0
        self._temporary = temporary_path(self.path)
        self._file: BinaryIO | None = None

    def __enter__(self) -> PredictionFile:
        self._file = open(self._temporary, "xb")  # noqa: SIM115  closed by __exit__
        self._file.write(b"[\n")
        return self

    def add(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write the entries of one image, from `Prediction.to_coco`.

        They are written at once, because a signal may end the job between any two statements.
        """
        assert self._file is not None, "used outside of its block"
        lines = [json_bytes(entry) for entry in entries]
        if lines:
            before = b",\n" if self.num_entries else b""
            self._file.write(before + b",\n".join(lines))
        self.num_entries += len(lines)
        self.num_images += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            with self._file as file:
                file.write(b"\n]\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            incomplete = self.path.with_stem(f"{self.path.stem}.incomplete")
            self._temporary.replace(incomplete)
            raise ResourceError(
                f"{self.path} cannot be written: {failure.strerror or failure}; the complete part is in "
                f"{incomplete}"
            ) from None
        if kind is not None and not self.num_images:  # earlier results stay
            self._temporary.unlink()
            return
        self._temporary.replace(self.path)
        if kind is not None:
            logger.info(
                "the job ended early; the predictions so far were written"
            )
        logger.info(
            "%s, %s: %s",
            counted(self.num_images, "image"),
            counted(self.num_entries, "detection"),
            self.path,
        )


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return a key that is the same for all names and mounts of a path; None if the path does not exist.

    Example:
        >>> file_identity(Path("image.jpg")) == file_identity(Path("images/../image.jpg"))
        True
    """
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino
