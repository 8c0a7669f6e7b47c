"""Results of checks: a check that fails, or cannot run here, does not stop the others."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..core.errors import RunError
from .distributed import explain_lost_rank, gather_objects, rank
from .log import logger
from .process import explain

Status = Literal["ok", "skipped", "warning", "failed"]

SEVERITY: tuple[Status, ...] = ("ok", "skipped", "warning", "failed")
"""From harmless to severe."""


@dataclass(frozen=True)
class Finding:
    """The result of a check, without its name."""

    text: str
    numbers: dict[str, Any] = field(default_factory=dict)
    """Measured values for the JSON report."""
    status: Status = "ok"
    code: int = 0
    """Exit code of a failed check (docs/errors.md)."""


@dataclass(frozen=True)
class Check(Finding):
    """The result of a check with its name."""

    name: str = ""
    by_rank: tuple[dict[str, Any], ...] = ()
    """Results of all ranks, in rank order; empty with a single rank."""

    def as_json(self) -> dict[str, Any]:
        """Return the entry of the JSON report."""
        entry: dict[str, Any] = {"name": self.name, "status": self.status}
        if self.status == "failed":
            entry["code"] = self.code
        entry.update(text=self.text, numbers=self.numbers)
        if self.by_rank:
            entry["by_rank"] = list(self.by_rank)
        return entry


class Skipped(Exception):
    """A check cannot run on this machine; the text is the reason."""


class ChecksFailed(RunError):
    """At least one check has failed."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code


def run_check(name: str, check: Callable[[], Finding]) -> Check:
    """Run a check; an error is a failed check with the message and exit code that a command would end with.

    Args:
        name: name of the check.
        check: function that returns what it has found, or raises `Skipped`.
    """
    try:
        finding = check()
    except Skipped as reason:
        return Check(str(reason), status="skipped", name=name)
    except Exception as error:
        if logger.isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        code, message = explain(explain_lost_rank(error) or error)
        return Check(message, status="failed", code=code, name=name)
    return Check(
        finding.text, finding.numbers, finding.status, finding.code, name
    )


def over_all_ranks(check: Check) -> Check:
    """Return the most severe result of all ranks, or this rank's if none is worse. All ranks call this."""
    everyone = gather_objects(check)
    if len(everyone) == 1:
        return check
    worst = rank()
    for number, theirs in enumerate(everyone):
        if severity(theirs) > severity(everyone[worst]):
            worst = number
    result = everyone[worst]
    text = result.text if worst == rank() else f"rank {worst}: {result.text}"
    entries = []
    for theirs in everyone:
        entry = asdict(theirs)
        entries.append(
            {key: entry[key] for key in ("status", "text", "numbers")}
        )
    return Check(
        text,
        result.numbers,
        result.status,
        result.code,
        check.name,
        tuple(entries),
    )


def severity(check: Check) -> int:
    """Return the position of a result in `SEVERITY`."""
    return SEVERITY.index(check.status)


def exit_code_of(checks: Sequence[Check]) -> int:
    """Return 0 if no check has failed, else the highest exit code of those that have.

    Higher codes are about the machine (6 and 7), lower ones about data (3) and usage (2).
    """
    failed = [check.code for check in checks if check.status == "failed"]
    return max(failed, default=0)


def raise_if_failed(checks: Sequence[Check]) -> None:
    """Raise an error with the names of the failed checks.

    Raises:
        ChecksFailed: with the exit code of the most severe failure.
    """
    failed = [check.name for check in checks if check.status == "failed"]
    if failed:
        raise ChecksFailed(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}",
            exit_code_of(checks),
        )
