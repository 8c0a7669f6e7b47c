"""Format lists of faults in messages: their number, the first ones, and the number of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FAULTS_SHOWN = 20
"""Maximum number of faults in one message."""


def listed(
    items: Sequence[Any],
    separator: str = ", ",
    *,
    shown: int = FAULTS_SHOWN,
    before_more: str = " ",
) -> str:
    """Join the first items for a message and add the number of the others.

    Args:
        items: items to list, converted with `str`.
        separator: text between two items.
        shown: maximum number of items in the list.
        before_more: text between the last item and "... and 3 more".
    """
    text = separator.join(map(str, items[:shown]))
    if len(items) > shown:
        text += f"{before_more}... and {len(items) - shown:,} more"
    return text
