"""The end of a command: one line and an exit code for faults that a user can fix, a traceback only for bugs."""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from ..core.errors import ConfigError, Preempted, RankError, ResourceError, RunError, first_line
from .device_faults import explain_device_fault
from .distributed import explain_lost_rank, is_distributed, leave_group, rank, tell_error
from .files import is_in_use, write_json
from .limits import explain_limit
from .log import logger, printable, silence
from .own_files import is_ours

STATUS_FILE = "run_status.json"

_PATH_FAULTS = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
    errno.EXDEV,
)
"""What the system says when a path cannot be used as it is."""


def run_command(
    command: Callable[[], None], *, debug: bool = False, status_dir: Callable[[], Path | None] = lambda: None
) -> None:
    """Run a command and end the process with its exit code.

    Args:
        command: what to do; expected errors are `RunError`s.
        debug: show tracebacks.
        status_dir: where `run_status.json` goes, for launchers that swallow exit codes; asked at the end; None writes none.
    """
    true_code = 0
    try:
        command()
        code, message = 0, "done"
    except BrokenPipeError as error:
        code, message = _explain_closed_pipe(error)
    except BaseException as error:
        lost = explain_lost_rank(error)
        code, message = explain(lost or error)
        true_code = (lost and lost.first_code) or code
        if debug:
            traceback.print_exc()
        if lost is None:
            tell_error(code, printable(message))
        where = f" (rank {rank()})" if is_distributed() else ""
        sys.stderr.write(f"error[{code}]: {printable(message)}{where}\n")
    _write_status(status_dir(), true_code, printable(message))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
    sys.stderr.flush()
    if not is_distributed():
        sys.exit(code)
    if not code:  # else leaving in good order would wait for ranks that wait for us
        leave_group()
    os._exit(
        code
    )  # threads of the group may outlive it, and then the interpreter's own end now and then aborts


def _explain_closed_pipe(error: BrokenPipeError) -> tuple[int, str]:
    """Return code and line for a pipe that nobody reads any more: no fault if it is the standard output's (`| head`)."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        return 128 + signal.SIGPIPE, "nobody reads the output any more"
    code, message = explain(error)
    sys.stderr.write(f"error[{code}]: {printable(message)}\n")
    return code, message


class Terminated(KeyboardInterrupt):
    """A signal other than Ctrl-C's ends the command."""

    def __init__(self, number: int) -> None:
        """Store which one."""
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does: what was found until then is written."""

    def end(number: int, frame: object) -> None:
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the line for a user."""
    if isinstance(error, RunError):
        return error.exit_code, _own_words(error)
    if isinstance(error, MemoryError):
        return (
            ResourceError.exit_code,
            f"out of memory: {str(error) or 'the system gave no more'}; reduce total_batch_size or num_workers",
        )
    if _is_torch_out_of_memory(error):
        return ResourceError.exit_code, (
            f"out of memory: {first_line(error, without_text='the device gave no more')}; reduce total_batch_size and raise "
            f"grad_accum_steps by as much, or switch on DINOv3Backbone.gradient_checkpointing; last.pth is as it was saved last"
        )
    if fault := explain_device_fault(error):
        return (RankError if is_distributed() else ResourceError).exit_code, fault
    if limit := explain_limit(error):
        return ResourceError.exit_code, limit
    if isinstance(error, OSError) and error.errno in _PATH_FAULTS and error.filename is not None:
        return ConfigError.exit_code, f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}"
    if isinstance(error, Terminated):
        return 128 + error.signal, f"stopped by {error.signal.name}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, str(error.code)
    return (
        1,
        f"unexpected {type(error).__name__}: {error}; this is a bug: run again with --debug and report what it prints",
    )


def _is_torch_out_of_memory(error: BaseException) -> bool:
    """Return whether torch got no memory: a device has an error of its own, the CPU's allocator only its words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def _own_words(error: RunError) -> str:
    """Return what an error says; one from a loader's worker comes with the traceback of that process before it."""
    text, name = str(error), f"{type(error).__module__}.{type(error).__qualname__}: "
    return text.rpartition(f"\n{name}")[2].rstrip() if "Original Traceback" in text else text


def _write_status(folder: Path | None, code: int, message: str) -> None:
    try:
        if (
            folder is None or not folder.is_dir() or is_in_use(folder)
        ):  # of a run that has a status of its own
            return
        path = folder / STATUS_FILE
        if os.path.lexists(path) and not is_ours(path):
            logger.warning("%s is not a file of this project and is left as it is", path)
            return
        status = {0: "done", Preempted.exit_code: "preempted"}.get(code, "failed")
        write_json(path, {"status": status, "exit_code": code, "message": message})
    except (ResourceError, OSError) as error:
        logger.warning("%s", error)
