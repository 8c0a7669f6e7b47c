"""Errors that a user can cause and fix, each with the exit code of its kind.

A message states what was found, what was expected, where, and what to do. Any other exception that leaves
`src` is a bug of this project.
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
    """A weight file or a checkpoint is missing, damaged, of another program or does not fit the model."""

    exit_code = 4


class NumericsError(RunError):
    """Training produced NaN or infinity, or diverged."""

    exit_code = 5


class ResourceError(RunError):
    """Disk space, memory or file handles ran out, or a worker process died."""

    exit_code = 6


class RankError(RunError):
    """The ranks of a distributed run cannot connect or do not agree."""

    exit_code = 7


class ExportError(RunError):
    """An exported model gives other results than the model that it was exported from."""

    exit_code = 8


class Preempted(RunError):
    """A signal asked the run to stop; its state was saved."""

    exit_code = 75


def first_line(error: BaseException, *, without_text: str | None = None) -> str:
    """Return the first line of an error's text, for single-line messages.

    Args:
        error: any error; errors of libraries can have texts of many lines.
        without_text: value to return if the error has no text; None returns the name of its class.
    """
    lines = str(error).strip().splitlines()
    if lines:
        return lines[0]
    return type(error).__name__ if without_text is None else without_text
