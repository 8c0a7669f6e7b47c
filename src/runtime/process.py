"""End a command with one line and an exit code for errors that a user can fix, and a traceback for bugs."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ..core.errors import (
    ConfigError,
    Preempted,
    RankError,
    ResourceError,
    RunError,
    first_line,
)
from .device_faults import (
    explain_compiler_fault,
    explain_device_fault,
    lacks_device_memory,
)
from .distributed import (
    ended_first,
    error_of_other_rank,
    explain_lost_rank,
    is_distributed,
    leave_group,
    rank,
    tell_error,
)
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
"""Error numbers for paths that cannot be used."""


_status_dirs: list[Callable[[], Path | None]] = []
"""`status_dir` of the command that is running, if one is."""


def run_command(
    command: Callable[[], None],
    *,
    debug: bool = False,
    status_dir: Callable[[], Path | None] = lambda: None,
) -> None:
    """Run a command and end the process with its exit code.

    Args:
        command: function to run; expected errors are `RunError`s.
        debug: show tracebacks.
        status_dir: function, called at the end, that returns the folder for `run_status.json`, for launchers
            that hide exit codes; None writes no status.
    """
    true_code = 0
    _status_dirs.append(status_dir)
    try:
        command()
        code = 0
        message = "done"
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
        sys.stderr.write(_error_line(code, message))
    finally:
        _status_dirs.pop()
    _write_status(status_dir(), true_code, printable(message))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
    sys.stderr.flush()
    if not is_distributed():
        sys.exit(code)
    # after an error, leaving the group would wait for ranks that wait for this one
    if not code:
        leave_group()
    # threads of the group may still run, with which a normal exit of the interpreter sometimes aborts
    os._exit(code)


def _error_line(code: int, message: str) -> str:
    """Return the line about an error on standard error."""
    where = f" (rank {rank()})" if is_distributed() else ""
    return f"error[{code}]: {printable(message)}{where}\n"


def end_from_thread(error: RunError) -> None:
    """End the running command with an error, from a thread, because the main thread does not come back.

    Outside `run_command`, as in a notebook, the error is only logged.
    """
    code, message = explain(error)
    if not _status_dirs:
        logger.error("%s", message)
        return
    sys.stderr.write(_error_line(code, message))
    sys.stderr.flush()
    _write_status(_status_dirs[-1](), code, printable(message))
    tell_error(code, printable(message))
    os._exit(code)


PEER_POLL_SECONDS = 1.0
"""Time between two looks at the notes of other ranks."""

PEER_GRACE_SECONDS = 10.0
"""Time in which a rank ends by itself after another one has ended with an error."""


def end_with_peers(folder: Path | None) -> None:
    """End this process when another rank has ended with an error, even if it waits in C for that rank.

    With NCCL, a rank waits for a dead one without running Python code, so that neither an exception nor a
    signal handler ends it. A thread looks for the error that the other rank leaves in the store.

    Args:
        folder: folder for `run_status.json`; None writes no status.
    """
    if is_distributed():
        threading.Thread(
            target=_watch_peers, args=(folder,), daemon=True
        ).start()


def _watch_peers(folder: Path | None) -> None:
    ended = None
    while ended is None or ended[0] == Preempted.exit_code:
        # a stop is shared by all ranks, which save and end by themselves
        time.sleep(PEER_POLL_SECONDS)
        if not is_distributed():
            return
        ended = error_of_other_rank()
    time.sleep(PEER_GRACE_SECONDS)
    first_code, _ = ended
    lost = ended_first(*ended)
    message = printable(str(lost))
    sys.stderr.write(f"error[{lost.exit_code}]: {message} (rank {rank()})\n")
    sys.stderr.flush()
    _write_status(folder, first_code, message)
    os._exit(lost.exit_code)


def report_running(folder: Path) -> None:
    """Write `run_status.json` at the start of a run, so that the status of an earlier run is not read."""
    _write_json_status(
        folder, {"status": "running", "exit_code": None, "message": "running"}
    )


def _explain_closed_pipe(error: BrokenPipeError) -> tuple[int, str]:
    """Return exit code and message for a closed pipe; for standard output (`| head`) it is not an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        return 128 + signal.SIGPIPE, "the reader of the output has ended"
    code, message = explain(error)
    sys.stderr.write(f"error[{code}]: {printable(message)}\n")
    return code, message


class Terminated(KeyboardInterrupt):
    """A signal other than SIGINT (Ctrl-C) ends the command."""

    def __init__(self, number: int) -> None:
        """Store the signal."""
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def end_in_order() -> None:
    """Make SIGTERM and SIGHUP end the command as Ctrl-C does, so that results so far are written."""

    def end(number: int, frame: object) -> None:
        raise Terminated(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the one-line message for a user."""
    if isinstance(error, RunError):
        return error.exit_code, _own_words(error)
    if isinstance(error, MemoryError):
        return (
            ResourceError.exit_code,
            f"out of memory: {str(error) or 'allocation failed'}; reduce total_batch_size or num_workers",
        )
    if _is_torch_out_of_memory(error):
        return ResourceError.exit_code, (
            f"out of memory: {first_line(error, without_text='allocation failed')}; reduce total_batch_size "
            "and raise grad_accum_steps by the same factor, or enable DINOv3Backbone.gradient_checkpointing; "
            "last.pth is unchanged since the last save"
        )
    fault = explain_device_fault(error)
    if fault:
        return (
            RankError if is_distributed() else ResourceError
        ).exit_code, fault
    compiler_fault = explain_compiler_fault(error)
    if compiler_fault:
        return ConfigError.exit_code, compiler_fault
    limit = explain_limit(error)
    if limit:
        return ResourceError.exit_code, limit
    path_fault = _explain_path_fault(error)
    if path_fault:
        return ConfigError.exit_code, path_fault
    if isinstance(error, Terminated):
        return 128 + error.signal, f"stopped by {error.signal.name}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped by Ctrl-C"
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1, str(error.code)
    if isinstance(error, RuntimeError) and "illegal memory access" in str(
        error
    ):
        return 1, (
            f"{first_line(error)}: a kernel read or wrote outside its memory, which is a bug of this project "
            "or of torch, or a failing GPU; run again with CUDA_LAUNCH_BLOCKING=1 and --debug, and report "
            "the output; last.pth is unchanged since the last save"
        )
    return 1, (
        f"unexpected {type(error).__name__}: {error}; this is a bug: run again with --debug and report the "
        "output"
    )


def _explain_path_fault(error: BaseException) -> str | None:
    """Return a message about a path that cannot be used; None for any other error."""
    if not isinstance(error, OSError) or error.filename is None:
        return None
    if error.errno not in _PATH_FAULTS:
        return None
    return f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}"


def _is_torch_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation of torch, of a library or of NCCL failed, on the CPU or on a device."""
    text = "DefaultCPUAllocator: can't allocate memory"
    if isinstance(error, RuntimeError) and text in str(error):
        return True
    return lacks_device_memory(error)


def _own_words(error: RunError) -> str:
    """Return the message of an error, without the traceback that torch adds to errors of loader workers."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return text.rpartition(f"\n{name}")[2].rstrip()


def _write_status(folder: Path | None, code: int, message: str) -> None:
    """Write the result of a run to `run_status.json`."""
    if folder is None:
        return
    status = {0: "done", Preempted.exit_code: "preempted"}.get(code, "failed")
    _write_json_status(
        folder, {"status": status, "exit_code": code, "message": message}
    )


def _write_json_status(folder: Path, content: dict[str, object]) -> None:
    """Write `run_status.json`, unless another run uses the folder or the file is not of this project."""
    try:
        if not folder.is_dir():
            return
        if is_in_use(folder):  # by another run, which writes its own status
            return
        path = folder / STATUS_FILE
        if os.path.lexists(path) and not is_ours(path):
            logger.warning(
                "%s was not written by this project and is not changed", path
            )
            return
        write_json(path, content)
    except (ResourceError, OSError) as error:
        logger.warning("%s", error)
