"""Errors that a user can cause and fix, each with the exit code of its kind.

A message says what was found, what was expected, where, and what to do. Anything raised in `src` that is
not one of these is a bug of ours.
"""


class RunError(Exception):
    """Base of all expected errors; `exit_code` becomes the exit status of the process."""

    exit_code = 1


class ConfigError(RunError):
    """A configuration file, a command-line argument or a combination of settings is wrong."""

    exit_code = 2


class DataError(RunError):
    """An annotation file or an image is wrong."""

    exit_code = 3


class CheckpointError(RunError):
    """A weight file or a checkpoint is missing, damaged, foreign or does not fit."""

    exit_code = 4


class NumericsError(RunError):
    """Training produced NaN or infinity, or diverged."""

    exit_code = 5


class ResourceError(RunError):
    """Disk, memory, file handles or a worker process ran out or died."""

    exit_code = 6


class RankError(RunError):
    """The ranks of a distributed run cannot find each other or disagree."""

    exit_code = 7


class ExportError(RunError):
    """An exported model does not agree with the model it came from."""

    exit_code = 8


class Preempted(RunError):
    """A signal asked the run to stop; its state was saved."""

    exit_code = 75


def first_line(error: BaseException, *, without_text: str | None = None) -> str:
    """Return the first line of an error's text, for messages of one line.

    Args:
        error: any error; the texts of libraries can have many lines.
        without_text: returned for an error without a text; None returns the name of its class.
    """
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__ if without_text is None else without_text
