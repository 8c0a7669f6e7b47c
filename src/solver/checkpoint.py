"""What `last.pth` and `best.pth` are: written whole, kept in pairs, read back even when one is damaged."""

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

BEST, LAST, PREVIOUS = "best.pth", "last.pth", "last.previous.pth"

SET_ASIDE = "best.other_data"
"""Where `best.pth` goes when a run continues with other data, by which scores cannot be compared; `.pth` follows, or `.2.pth`."""

NUMBERED = "checkpoints"
"""Folder of the checkpoints that are kept by their epoch."""

SAVE_ATTEMPTS = 3


class CheckpointFolder:
    """The checkpoints of one run, written by rank 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failures: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        """Why the latest content of a file is not on disk, by its name."""
        self._waiting: dict[str, dict[str, Any]] = {}
        """Copies of contents that no later save replaces, by file name."""

    def clean_up(self) -> None:
        """Remove what a killed run left half-written."""
        if names := remove_leftovers(self.folder):
            logger.info(
                "removed %d half-written files of an earlier run: %s", len(names), ", ".join(names[:3])
            )

    def save_last(self, state: dict[str, Any]) -> bool:
        """Write `last.pth`; the one before stays as `last.previous.pth`. Return False if it could not be written."""
        self._write_waiting()
        return self._save(LAST, state, PREVIOUS)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write `best.pth`, at a later save if the disk is full now."""
        self._save_or_keep(BEST, state)

    def save_numbered(self, epoch: int, state: dict[str, Any]) -> None:
        """Write `checkpoints/epoch0012.pth` and the like, counted from 1; at a later save if the disk is full now."""
        (self.folder / NUMBERED).mkdir(exist_ok=True)
        self._save_or_keep(f"{NUMBERED}/epoch{epoch + 1:04}.pth", state)

    def set_best_aside(self) -> None:
        """Rename `best.pth`, which the next evaluation would replace whatever its score."""
        if (self.folder / BEST).exists():
            self._rename_best(SET_ASIDE)

    def set_damaged_best_aside(self) -> None:
        """Rename a `best.pth` that cannot be read; whatever it is, it is not replaced."""
        path = self.folder / BEST
        if path.is_file() and not path.is_symlink() and _content_of(path) is None:
            self._rename_best("best.damaged")

    def _rename_best(self, stem: str) -> None:
        name, number = f"{stem}.pth", 1
        while os.path.lexists(self.folder / name):
            number += 1
            name = f"{stem}.{number}.pth"
        os.rename(self.folder / BEST, self.folder / name)
        logger.warning("%s is kept as %s", self.folder / BEST, name)

    def has_best(self, epoch: int, resumed_from: Path) -> bool:
        """Return whether `best.pth` is there and of an epoch; one that lies beside the file that is resumed from is copied."""
        for path in (self.folder / BEST, resumed_from.with_name(BEST)):
            if _is_of_epoch(path, epoch):
                if path.resolve() != (self.folder / BEST).resolve():
                    content = path.read_bytes()
                    write_atomically(self.folder / BEST, partial(_write_bytes, content))
                    logger.info("%s is copied to %s", path, self.folder / BEST)
                return True
        return False

    @property
    def unsaved(self) -> str:
        """What is not on disk although it should be, with reasons; empty if everything is."""
        return "; ".join(f"{name}: {reason}" for name, reason in self._reasons.items())

    def finish(self) -> None:
        """Try once more to write what waits.

        Raises:
            ResourceError: with everything that is not on disk at the end of a run.
        """
        self._write_waiting()
        if self._reasons:
            raise ResourceError(
                f"training has ended, but what it learned is not saved in full: {self.unsaved}; make room, and "
                "repeat the lost part with -r auto"
            )

    def load_last(self, path: Path) -> tuple[dict[str, Any], Path]:
        """Read the state of a run; of a `last.pth` that is damaged or missing the one before it, with a warning.

        Returns:
            The state, and the file that it came from.

        Raises:
            CheckpointError: if none is whole, with the reason for each; or if the file cannot be resumed from.
            NumericsError: if it holds values that are not finite, with the file before it if that one can be used.
        """
        reasons = []
        candidates = (path, path.with_name(PREVIOUS)) if path.name == LAST else (path,)
        for candidate in candidates:
            try:
                state = _read_state(candidate)
            except NoStateError:
                raise
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            if place := first_non_finite(state):
                raise NumericsError(
                    f"{candidate}: tensor {place} holds values that are not finite{_advice(candidate)}"
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

    def _save(self, name: str, state: dict[str, Any], previous: str | None = None) -> bool:
        """Write a file; a full disk is survived a few times for each file, since it may be emptied.

        Raises:
            ResourceError: at the third failure in a row.
            NumericsError: if the state holds NaN or infinity; what is on disk stays.
        """
        if place := first_non_finite(state):
            raise NumericsError(
                f"{self.folder / name} was not written: {place} holds values that are not finite; the file before it "
                f"is as it was: resume with -r {self.folder / LAST} and a lower learning rate, or bf16 or float32 in "
                "place of fp16"
            )
        try:
            write_tensor_file(
                self.folder / name, state, keep_previous=self.folder / previous if previous else None
            )
        except ResourceError as error:
            self._failures[name] += 1
            self._reasons[name] = str(error)
            if self._failures[name] >= SAVE_ATTEMPTS:
                raise ResourceError(f"{error}; given up after {SAVE_ATTEMPTS} attempts") from None
            logger.warning("%s; training continues and tries again at the next save", error)
            return False
        del self._failures[name]
        self._reasons.pop(name, None)
        return True


def _read_state(path: Path) -> dict[str, Any]:
    """Read a file of `save_last`.

    Raises:
        CheckpointError: if it is damaged; or if it holds something else, which no other file makes up for.
    """
    state = read_tensor_file(path)
    if not isinstance(state, dict) or "progress" not in state:
        raise NoStateError(
            f"{path} holds weights but no training state; resume with -r last.pth, or start a new run from its weights with -t"
        )
    check_state(path, state)
    return state


class NoStateError(CheckpointError):
    """A file is whole, but no run can be resumed from it."""


def _write_bytes(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def _is_of_epoch(path: Path, epoch: int) -> bool:
    """Return whether a `best.pth` is whole and of an epoch."""
    content = _content_of(path)
    meta = content.get("meta") if isinstance(content, dict) else None
    return isinstance(meta, dict) and meta.get("epoch") == epoch


def _content_of(path: Path) -> Any:
    """Return what a file of tensors holds; None if it is not there or damaged."""
    try:
        return read_tensor_file(path)
    except CheckpointError:
        return None


def _advice(poisoned: Path) -> str:
    """Return which file to resume from in place of one with NaN, to follow a message."""
    previous = poisoned.with_name(PREVIOUS)
    if previous != poisoned:
        with suppress(CheckpointError):
            if first_non_finite(_read_state(previous)) is None:
                return f"; the one before it is sound: resume with -r {previous}"
    return "; start a new run, from weights of before with -t"


def _copied(content: Any) -> Any:
    """Copy nested containers with their tensors, which training will change, to the CPU."""
    if isinstance(content, Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_copied(value) for value in content)
    return content
