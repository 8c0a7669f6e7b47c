"""How messages list faults: how many there are, the first of them, and how many more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FAULTS_SHOWN = 20
"""Faults that one message lists."""


def count_faults(count: int) -> str:
    """Return "1 fault" or "3 faults"."""
    return "1 fault" if count == 1 else f"{count} faults"


def listed(
    items: Sequence[Any], separator: str = ", ", *, shown: int = FAULTS_SHOWN, before_more: str = " "
) -> str:
    """Join items for a message: the first ones, and how many more there are.

    Args:
        items: what is listed, by `str`.
        separator: stands between two items.
        shown: number of items that are listed.
        before_more: stands between the last item and "... and 3 more".
    """
    more = f"{before_more}... and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(map(str, items[:shown])) + more
