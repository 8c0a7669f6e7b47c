"""SIGHUP, which a terminal sends when it is closed, and which `nohup` makes a command ignore."""

from __future__ import annotations

import signal
from collections.abc import Iterable


def without_ignored_hangup(
    signals: Iterable[signal.Signals],
) -> list[signal.Signals]:
    """Return the signals that a command handles: without SIGHUP if the command was started to ignore it.

    Handling it would end a command that was started with `nohup` when its terminal is closed.
    """
    kept = []
    for number in signals:
        is_hangup = number == signal.SIGHUP
        if is_hangup and signal.getsignal(number) == signal.SIG_IGN:
            continue
        kept.append(number)
    return kept
