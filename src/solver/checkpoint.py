"""What `last.pth` and `best.pth` are: written whole, kept in pairs, read back even when one is damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, ResourceError
from ..runtime.files import remove_leftovers
from ..runtime.log import logger
from ..runtime.weight_files import read_tensor_file, write_tensor_file

BEST, LAST, PREVIOUS = "best.pth", "last.pth", "last.previous.pth"

SAVE_ATTEMPTS = 3


class CheckpointFolder:
    """The checkpoints of one run, written by rank 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._failures = 0

    def clean_up(self) -> None:
        """Remove what a killed run left half-written."""
        if names := remove_leftovers(self.folder):
            logger.info(
                "removed %d half-written files of an earlier run: %s", len(names), ", ".join(names[:3])
            )

    def save_last(self, state: dict[str, Any]) -> None:
        """Write `last.pth`; the one before stays as `last.previous.pth`."""
        self._save(LAST, state, PREVIOUS)

    def save_best(self, state: dict[str, Any]) -> None:
        """Write `best.pth`."""
        self._save(BEST, state)

    def save_numbered(self, epoch: int, state: dict[str, Any]) -> None:
        """Write `checkpoints/epoch0012.pth` and the like, counted from 1."""
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        self._save(f"checkpoints/epoch{epoch + 1:04}.pth", state)

    def load_last(self, path: Path) -> dict[str, Any]:
        """Read a `last.pth`; if it is damaged, the one before it, with a warning.

        Raises:
            CheckpointError: if none is whole, with the reason for each; or if the file cannot be resumed from.
        """
        reasons = []
        for candidate in dict.fromkeys((path, path.with_name(PREVIOUS))):
            try:
                state = read_tensor_file(candidate)
            except CheckpointError as error:
                reasons.append(str(error))
                continue
            if not isinstance(state, dict) or "progress" not in state:
                raise CheckpointError(
                    f"{candidate} holds weights but no training state; resume with -r last.pth, or start a new run from its weights with -t"
                )
            if reasons:
                logger.warning(
                    "%s; going on from %s (epoch %d, step %d)",
                    reasons[0],
                    candidate,
                    state["progress"]["epoch"],
                    state["progress"]["step"],
                )
            return state
        raise CheckpointError("; ".join(reasons))

    def _save(self, name: str, state: dict[str, Any], previous: str | None = None) -> None:
        """Write a file; a full disk is survived a few times, since it may be emptied."""
        try:
            write_tensor_file(
                self.folder / name, state, keep_previous=self.folder / previous if previous else None
            )
            self._failures = 0
        except ResourceError as error:
            self._failures += 1
            if self._failures >= SAVE_ATTEMPTS:
                raise ResourceError(f"{error}; given up after {SAVE_ATTEMPTS} attempts") from None
            logger.warning("%s; training goes on and tries again at the next save", error)
