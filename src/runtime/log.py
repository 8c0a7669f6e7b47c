"""The one logger, set up once a process."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("dfine")

LONGEST_LINE = 20_000
"""Characters; a name in a file can be a megabyte long."""


def set_up_logging(*, speaks: bool, debug: bool = False) -> None:
    """Send messages to the terminal; a rank that does not speak shows errors alone.

    Args:
        speaks: True on the rank that reports for all.
        debug: show debug messages too.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    handler.addFilter(_OneLine())
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if not speaks else logging.DEBUG if debug else logging.INFO)


def printable(text: str) -> str:
    """Keep a message on one line of bounded length; names from files must not move the cursor."""
    cut = f" ... ({len(text) - LONGEST_LINE} more characters)" if len(text) > LONGEST_LINE else ""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[:LONGEST_LINE]) + cut


class _OneLine(logging.Filter):
    """Marks warnings and keeps each message on its line."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = printable(record.getMessage())
        record.msg, record.args = (f"warning: {text}" if record.levelno == logging.WARNING else text), ()
        return True
