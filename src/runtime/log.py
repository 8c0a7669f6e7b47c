"""The logger of this project, set up once per process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

logger = logging.getLogger("dfine")

LONGEST_LINE = 20_000
"""Maximum characters of a message; a name in a file can be a megabyte long."""


def say(text: str) -> None:
    """Write a line to standard output; if its reader has ended (`| head`), work continues without output."""
    try:
        print(printable(text), flush=True)  # noqa: T201  the only place that prints
    except BrokenPipeError:
        silence()


def say_lines(text: str) -> None:
    """Write each line of a text, such as a table, with `say`, which would escape the line breaks."""
    for line in text.splitlines():
        say(line)


def silence() -> None:
    """Discard everything that is written to standard output from now on."""
    with suppress(
        OSError, ValueError
    ):  # the stream may have no file, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class _Terminal(logging.StreamHandler):
    """A handler for standard output that goes silent when the reader has ended."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Go silent on a closed pipe; report any other error as usual."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            silence()
        else:
            super().handleError(record)


def set_up_logging(*, speaks: bool, debug: bool = False) -> None:
    r"""Send messages to standard output; characters outside the terminal's encoding are written as \uXXXX.

    Args:
        speaks: True on the rank that logs for all; the other ranks log only errors.
        debug: also show debug messages.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    handler = _Terminal(sys.stdout)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    handler.addFilter(_OneLine())
    logger.handlers[:] = [handler]
    logger.propagate = False
    if not speaks:
        logger.setLevel(logging.ERROR)
    else:
        logger.setLevel(logging.DEBUG if debug else logging.INFO)


@contextmanager
def shown_in_terminal(*, speaks: bool = True) -> Iterator[None]:
    """Show messages on standard output while the body runs, for programs that use this package as a library.

    Nothing is changed if the program has configured logging itself. All changes are undone at the end.

    Args:
        speaks: as for `set_up_logging`.
    """
    if logger.hasHandlers():
        yield
        return
    handler = _Terminal(sys.stdout)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S")
    )
    handler.addFilter(_OneLine())
    level = logger.level
    logger.addHandler(handler)
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO if speaks else logging.ERROR)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def least_severe(level: int, *names: str) -> Iterator[None]:
    """Let loggers record only messages of this severity or above while the body runs.

    Their handlers stay as they are: they may belong to the program that uses this package.

    Args:
        level: severity, such as `logging.ERROR`.
        names: names of the loggers; "" is the root logger.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [named.level for named in loggers]
    try:
        for named in loggers:
            named.setLevel(level)
        yield
    finally:
        for named, before in zip(loggers, levels):
            named.setLevel(before)


def printable(text: str) -> str:
    """Return a message as one line of bounded length, without control characters from names in files."""
    shown = ""
    for character in text[:LONGEST_LINE]:
        shown += character if character.isprintable() else repr(character)[1:-1]
    if len(text) > LONGEST_LINE:
        shown += f" ... ({len(text) - LONGEST_LINE} more characters)"
    return shown


class _OneLine(logging.Filter):
    """Prefix warnings and keep each message on one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = printable(record.getMessage())
        record.msg = (
            f"warning: {text}" if record.levelno == logging.WARNING else text
        )
        record.args = ()
        return True
