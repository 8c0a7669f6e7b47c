"""Write and read `last.pth` and `best.pth`; writes are atomic, and one previous `last.pth` is kept."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from ..core.errors import CheckpointError, NumericsError, ResourceError
from ..runtime.files import remove_leftovers, write_atomically
from ..runtime.finite import first_non_finite
from ..runtime.log import logger
from ..runtime.weight_files import read_tensor_file, write_tensor_file
from .state_schema import check_state

BEST = "best.pth"
LAST = "last.pth"
PREVIOUS = "last.previous.pth"

SET_ASIDE = "best.other_data"
"""New name of `best.pth` when a run continues with other data, whose scores cannot be compared.

The suffix is `.pth`, or `.2.pth` and so on if that file exists.
"""

NUMBERED = "checkpoints"
"""Folder of the checkpoints that are saved every `checkpoint_freq` epochs."""

SAVE_ATTEMPTS = 3


def numbered_name(epoch: int) -> str:
    """Return the path of the numbered checkpoint of an epoch, which counts from 0, in the folder of a run."""
    return f"{NUMBERED}/epoch{epoch + 1:04}.pth"


class CheckpointFolder:
    """Manage the checkpoints of one run; only rank 0 writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failures: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        """Reason why the latest content of a file could not be written, by file name."""
        self._waiting: dict[str, dict[str, Any]] = {}
        """Copies of contents still to be written, by file name; no later save replaces them."""

    def clean_up(self) -> None:
        """Delete files that a killed run left half-written."""
        names = remove_leftovers(self.folder)
        if names:
            logger.info(
                "removed %d half-written files of an earlier run: %s",
                len(names),
                ", ".join(names[:3]),
            )

    def save_last(self, state: dict[str, Any]) -> bool:
        """Write `last.pth` and keep the previous file; return False if writing failed."""
        self._write_waiting()
        return self._save(LAST, state, PREVIOUS)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write `best.pth`; retry at the next save if the disk is full."""
        self._save_or_keep(BEST, state)

    def save_numbered(self, epoch: int, state: dict[str, Any]) -> None:
        """Write `checkpoints/epoch0012.pth`, epochs from 1; retry at the next save if the disk is full."""
        (self.folder / NUMBERED).mkdir(exist_ok=True)
        self._save_or_keep(numbered_name(epoch), state)

    def set_best_aside(self) -> None:
        """Rename `best.pth`, which the next evaluation would otherwise replace regardless of the score."""
        if (self.folder / BEST).exists():
            self._rename_best(SET_ASIDE)

    def set_damaged_best_aside(self) -> None:
        """Rename a `best.pth` that cannot be read, so that it is not overwritten."""
        path = self.folder / BEST
        if (
            path.is_file()
            and not path.is_symlink()
            and _content_of(path) is None
        ):
            self._rename_best("best.damaged")

    def _rename_best(self, stem: str) -> None:
        name = f"{stem}.pth"
        number = 1
        while os.path.lexists(self.folder / name):
            number += 1
            name = f"{stem}.{number}.pth"
        os.rename(self.folder / BEST, self.folder / name)
        logger.warning("%s is kept as %s", self.folder / BEST, name)

    def has_best(self, epoch: int, resumed_from: Path) -> bool:
        """Return whether `best.pth` exists and is of `epoch`.

        If only the folder of the resumed file has it, it is copied into this run's folder.
        """
        best = self.folder / BEST
        if _is_of_epoch(best, epoch):
            return True
        other = resumed_from.with_name(BEST)
        if not _is_of_epoch(other, epoch):
            return False
        write_atomically(best, partial(_write_bytes, other.read_bytes()))
        logger.info("%s is copied to %s", other, best)
        return True

    @property
    def unsaved(self) -> str:
        """Files that could not be written, with reasons; empty if all are on disk."""
        return "; ".join(
            f"{name}: {reason}" for name, reason in self._reasons.items()
        )

    def finish(self) -> None:
        """Try once more to write the files that could not be written before.

        Raises:
            ResourceError: if any of them still cannot be written; the message lists all of them.
        """
        self._write_waiting()
        if self._reasons:
            raise ResourceError(
                f"training has ended, but some of its results could not be saved: {self.unsaved}; free disk "
                "space and repeat the lost part with -r auto"
            )

    def load_last(self, path: Path) -> tuple[dict[str, Any], Path]:
        """Read the training state; if `last.pth` is damaged or missing, warn and read `last.previous.pth`.

        Returns:
            The state, and the file it was read from.

        Raises:
            CheckpointError: if no file is intact (the message has the reason for each), or if the file has no
                training state.
            NumericsError: if the state holds NaN or infinity; the message names the previous file if it is
                valid.
        """
        reasons = []
        candidates = [path]
        if path.name == LAST:
            candidates.append(path.with_name(PREVIOUS))
        for candidate in candidates:
            try:
                state = _read_state(candidate)
            except NoStateError:
                raise
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            place = first_non_finite(state)
            if place:
                raise NumericsError(
                    f"{candidate}: tensor {place} contains values that are not finite{_advice(candidate)}"
                )
            if reasons:
                logger.warning(
                    "%s; resuming from %s (epoch %d, step %d)",
                    reasons[0],
                    candidate,
                    state["progress"]["epoch"] + 1,
                    state["progress"]["step"],
                )
            return state, candidate
        raise CheckpointError("; ".join(reasons))

    def _save_or_keep(self, name: str, state: dict[str, Any]) -> None:
        self._waiting.pop(name, None)
        if not self._save(name, state):
            self._waiting[name] = _copied(state)

    def _write_waiting(self) -> None:
        for name in list(self._waiting):
            if self._save(name, self._waiting[name]):
                del self._waiting[name]

    def _save(
        self, name: str, state: dict[str, Any], previous: str | None = None
    ) -> bool:
        """Write a file; a failed write is only logged at first, since disk space may be freed later.

        Raises:
            ResourceError: at the third failure in a row for the same file.
            NumericsError: if the state holds NaN or infinity; the file on disk is unchanged.
        """
        place = first_non_finite(state)
        if place:
            raise NumericsError(
                f"{self.folder / name} was not written: {place} contains values that are not finite; the "
                f"existing file is unchanged: resume with -r {self.folder / LAST} and a lower learning "
                "rate, or bf16 or float32 instead of fp16"
            )
        kept = self.folder / previous if previous else None
        try:
            write_tensor_file(self.folder / name, state, keep_previous=kept)
        except ResourceError as error:
            self._failures[name] += 1
            self._reasons[name] = str(error)
            if self._failures[name] >= SAVE_ATTEMPTS:
                raise ResourceError(
                    f"{error}; given up after {SAVE_ATTEMPTS} attempts"
                ) from None
            logger.warning(
                "%s; training continues and tries again at the next save", error
            )
            return False
        del self._failures[name]
        self._reasons.pop(name, None)
        return True


def _read_state(path: Path) -> dict[str, Any]:
    """Read a file written by `save_last`.

    Raises:
        CheckpointError: if the file is damaged.
        NoStateError: if the file is intact but holds no training state.
    """
    state = read_tensor_file(path)
    if not isinstance(state, dict) or "progress" not in state:
        raise NoStateError(
            f"{path} holds weights but no training state; resume with -r last.pth, or start a new run from "
            "its weights with -t"
        )
    check_state(path, state)
    return state


class NoStateError(CheckpointError):
    """An intact file holds no training state, so that no run can be resumed from it."""


def _write_bytes(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _is_of_epoch(path: Path, epoch: int) -> bool:
    """Return whether a `best.pth` exists, is intact and is of `epoch`."""
    content = _content_of(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    return isinstance(meta, dict) and meta.get("epoch") == epoch


def _content_of(path: Path) -> Any:
    """Return the content of a tensor file, or None if it is missing or damaged."""
    try:
        return read_tensor_file(path)
    except CheckpointError:
        return None


def _advice(poisoned: Path) -> str:
    """Return the end of a message about a file with NaN: the file to resume from instead."""
    previous = poisoned.with_name(PREVIOUS)
    if previous != poisoned:
        with suppress(CheckpointError):
            if first_non_finite(_read_state(previous)) is None:
                return (
                    f"; the previous file is valid: resume with -r {previous}"
                )
    return "; start a new run from earlier weights with -t"


def _copied(content: Any) -> Any:
    """Copy nested containers and their tensors to the CPU, because training will change the originals."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_copied(value) for value in content)
    return content
