"""The writer of a service: it puts messages into a queue for the process that sends them."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ...core.yaml_text import dump_yaml
from ...runtime.log import logger
from ...runtime.own_files import marked_json
from ..curve_names import epoch_scalars
from ..run_result import RunResult
from .choice import SERVICES
from .logged_state import STATE
from .secrets import without_secrets

MOST_WAITING = 2000
"""Messages that wait for the process; values of steps are dropped if there are more."""

CLOSE_SECONDS = 60.0
"""Time to wait for the last values at the end of a run."""

_FOLDER = Path(__file__).resolve().parent

_Message = dict[str, Any]


class ServiceWriter:
    """Send the history of a run to a service through a process of its own.

    No method waits for the service or raises an error because of it. The first problem is logged as a
    warning, further ones are not. What is sent is repeated neither by a resumed run nor after an error.
    """

    def __init__(
        self,
        word: str,
        *,
        project: str,
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        module: str | None = None,
    ) -> None:
        """Start the process.

        Args:
            word: word of the service, such as "mlflow".
            project: project or experiment of the service.
            name: name of the run.
            config: configuration of the run; secrets in it are not sent.
            folder: output folder, which keeps the identifier of the run for a resumed run.
            module: module with `make_service`; None takes that of the service.
        """
        self.word = word
        self.title = SERVICES.get(word, word)
        public = without_secrets(config)
        text = json.dumps(public, default=str, ensure_ascii=False)
        self._queue: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._has_warned = False
        self._deadline: float | None = None
        self._ended = threading.Event()
        self._process = _start_process()
        opening = {
            "module": module or f"{_FOLDER.name}.{word}_service",
            "project": _utf8(project),
            "name": _utf8(name),
            "folder": str(folder),
            "config": json.loads(_utf8(text)),
            "config_text": dump_yaml(public),
            "state": str(folder.resolve() / STATE.format(word)),
            "mark": marked_json({}),
        }
        self._queue.put(opening)
        for work in (self._feed, self._read):
            threading.Thread(target=work, daemon=True).start()

    def write_step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the values of a step, unless too many wait."""
        if self._queue.qsize() >= MOST_WAITING:
            self._warn("it is too slow, so values of steps are left out")
            return
        self._put("step", step=step, scalars=_finite(scalars))

    def write_epoch(self, epoch: int, record: Mapping[str, Any]) -> None:
        """Send the evaluation of an epoch at its number, counted from 1."""
        scalars = _finite(epoch_scalars(record))
        steps = int(record.get("steps", epoch + 1))
        self._put("epoch", epoch=epoch + 1, step=steps, scalars=scalars)

    def write_picture(self, epoch: int, name: str, picture: Tensor) -> None:
        """Send a picture, unless too many messages wait."""
        if self._queue.qsize() < MOST_WAITING:
            self._put("picture", epoch=epoch + 1, name=name, png=picture)

    def write_result(self, result: RunResult) -> None:
        """Send the metrics of the best epoch and the report; the service can end after this."""
        report = None
        if result.report is not None:
            report = str(result.report.resolve())
        metrics = _finite(result.metrics)
        self._put("result", metrics=metrics, report=report)
        self._end(finished=True)  # so that all services end together

    def begin_to_close(self) -> None:
        """Let the service end, without waiting for it; the time that `close` waits begins here."""
        if self._deadline is None:
            self._end(finished=False)

    def _end(self, *, finished: bool) -> None:
        self._put("close", finished=finished)
        self._deadline = time.monotonic() + CLOSE_SECONDS

    def close(self) -> None:
        """Wait for the last values, for a limited time, and end the process."""
        self.begin_to_close()
        assert self._deadline is not None
        try:
            self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._warn(
                f"it did not take the last values within {CLOSE_SECONDS:.0f} s"
            )
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._ended.wait(5.0)  # for its last message

    def _put(self, kind: str, **content: Any) -> None:
        self._queue.put({"kind": kind, **content})

    def _feed(self) -> None:
        """Write the messages of the queue to the process, until the last one."""
        assert self._process.stdin is not None
        while True:
            message = self._queue.get()
            if isinstance(message.get("png"), Tensor):
                message["png"] = _png(message["png"])
            line = json.dumps(message) + "\n"
            try:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
            except OSError:  # the process has ended
                return
            if message.get("kind") == "close":
                return

    def _read(self) -> None:
        """Log what the process reports, until its end."""
        assert self._process.stdout is not None
        has_ended = False
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                continue
            self._report(message)
            if "ended" in message:
                has_ended = True
                self._ended.set()
        if not has_ended:
            self._warn("its process has ended")
        self._ended.set()

    def _report(self, message: Mapping[str, Any]) -> None:
        if "opened" in message:
            opened = message["opened"]
            if opened["remark"]:
                self._warn(opened["remark"])
            logger.info("%s: %s", self.title, opened["place"])
        if "failed" in message:
            self._warn(f"{message['failed']}; it is tried again")
        if "problem" in message:
            self._warn(message["problem"])
        if message.get("unsent"):
            self._warn(f"{message['unsent']} messages were not sent")

    def _warn(self, problem: str) -> None:
        """Log the first problem as a warning; the others only for `--debug`."""
        level = "debug" if self._has_warned else "warning"
        self._has_warned = True
        getattr(logger, level)(
            "%s does not get all values of this run: %s. The training is not affected; log.txt has all "
            "values of epochs",
            self.title,
            problem,
        )


def _start_process() -> subprocess.Popen[bytes]:
    """Start the process, in a session of its own: Ctrl-C in a terminal is for the trainer."""
    # this folder as a package of its own: the packages around it import torch
    code = (
        f"import sys; sys.path[0] = {str(_FOLDER.parent)!r}; "
        f"from {_FOLDER.name}.service_process import main; "
        f"sys.path[0] = {str(_FOLDER.parents[2])!r}; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _utf8(text: str) -> str:
    """Return a text with "?" for what is not Unicode, as in names of files; the packages require it."""
    return text.encode(errors="replace").decode()


def _finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the values that every service can store."""
    kept = {}
    for name, value in scalars.items():
        if value is not None and math.isfinite(value):
            kept[name] = float(value)
    return kept


def _png(picture: Tensor) -> str:
    """Return a picture `[3, H, W]` uint8 as PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
