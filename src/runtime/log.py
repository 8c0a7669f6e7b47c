"""The one logger, set up once a process."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

logger = logging.getLogger("dfine")

LONGEST_LINE = 20_000
"""Characters; a name in a file can be a megabyte long."""


def say(text: str) -> None:
    """Write a line to the terminal; when nobody reads any more (`| head`), the work continues without output."""
    try:
        print(printable(text), flush=True)  # noqa: T201  the one place
    except BrokenPipeError:
        silence()


def silence() -> None:
    """Let everything that is still written to the standard output go nowhere."""
    with suppress(OSError, ValueError):  # a stream without a file, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Terminal(logging.StreamHandler):
    """Writes to the standard output, and falls silent when nobody reads any more."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Take note of a pipe that is closed; report any other error as usual."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            silence()
        else:
            super().handleError(record)


def set_up_logging(*, speaks: bool, debug: bool = False) -> None:
    """Send messages to the terminal; a rank that does not speak shows errors alone.

    Args:
        speaks: True on the rank that reports for all.
        debug: show debug messages too.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # names that a terminal's encoding does not have are written as \\uXXXX
            stream.reconfigure(errors="backslashreplace")
    handler = _Terminal(sys.stdout)
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
