"""The process that sends the values of a run to a service: JSON lines in, JSON lines out. Imports no torch.

The first line opens the run; each further line is a step, an epoch, a picture, the result, or the end. If the
service fails, lines wait and are sent again later. The end of the input means that the trainer is gone.

Lines to the trainer have "opened", "failed" for an error after which it is tried again, "problem" for another
error, or "ended".
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import select
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .logged_state import SECONDS_WITHOUT_TRAINER, LoggedState, only_process
from .service import Service, ServiceRun, describe

Message = dict[str, Any]
Tell = Callable[[Message], None]

MOST_WAITING = 20_000
"""Lines that wait for a service that cannot be reached; older ones are dropped."""

RETRY_SECONDS = 20.0
"""Time between two tries of a service that fails."""

MOST_TRIES = 10
"""A line that fails so often while the service can be opened is dropped, so that it does not block others."""


class Sender:
    """Send the lines of a run in their order, each once."""

    def __init__(
        self,
        open_service: Callable[[str | None], Service],
        state: LoggedState,
        tell: Tell,
        pictures: Path,
    ) -> None:
        """Store the arguments.

        Args:
            open_service: opens the run with an identifier, or a new one; it sets `state.identifier`.
            state: what was sent by earlier processes.
            tell: sends a message to the trainer.
            pictures: folder for the files of pictures, which some services read later.
        """
        self._open_service = open_service
        self._state = state
        self._tell = tell
        self._pictures = pictures
        self._service: Service | None = None
        self._waiting: deque[Message] = deque(maxlen=MOST_WAITING)
        self._tries = 0
        self._next_try = 0.0
        self._dropped = 0

    def handle(self, message: Message) -> None:
        """Send a line, or let it wait while the service fails."""
        self._dropped += len(self._waiting) == MOST_WAITING
        self._waiting.append(message)
        if time.monotonic() >= self._next_try:
            self.send_waiting()

    def send_waiting(self, *, is_last: bool = False) -> None:
        """Send the lines that wait; an error is reported and the rest waits for the next try.

        Args:
            is_last: whether there is no next try.
        """
        try:
            if self._service is None:
                self._service = self._open_service(self._state.identifier)
            while self._waiting:
                self._send_first(self._service)
        except Exception as error:
            self._tell({"problem" if is_last else "failed": describe(error)})
            self._next_try = time.monotonic() + RETRY_SECONDS
            self._tries += self._service is not None
            if self._tries >= MOST_TRIES:
                self._waiting.popleft()
                self._dropped += 1
                self._tries = 0

    def close(self, *, finished: bool) -> None:
        """Try once more to send what waits, end the run of the service, and report what could not be sent."""
        if self._waiting or self._service is None:
            self.send_waiting(is_last=True)
        if self._service is not None:
            try:
                self._service.close(finished=finished)
            except Exception as error:
                self._tell({"problem": describe(error)})
        self._tell(
            {"ended": True, "unsent": self._dropped + len(self._waiting)}
        )

    def _send_first(self, service: Service) -> None:
        """Send the first line that waits. A picture that fails is dropped, so that values do not wait."""
        message = self._waiting[0]
        try:
            self._send(service, message)
        except Exception as error:
            if message["kind"] != "picture":
                raise
            self._tell({"problem": describe(error)})
            self._dropped += 1
        self._waiting.popleft()
        self._tries = 0

    def _send(self, service: Service, message: Message) -> None:
        """Send a line, unless an earlier process has sent it already."""
        state = self._state
        kind = message["kind"]
        if kind == "step" and message["step"] > state.step:
            service.send_step(message["step"], message["scalars"])
            state.step = message["step"]
        elif kind == "epoch" and message["epoch"] > state.epoch:
            epoch, step = message["epoch"], message["step"]
            service.send_epoch(epoch, step, message["scalars"])
            state.epoch = epoch
        elif kind == "picture":
            if message["epoch"] <= state.pictures.get(message["name"], 0):
                return
            _send_picture(service, message, self._pictures)
            state.pictures[message["name"]] = message["epoch"]
        elif kind == "result":
            report = message["report"]
            service.send_result(
                message["metrics"], None if report is None else Path(report)
            )
        else:
            return
        self._save()

    def _save(self) -> None:
        """Write the state; a line that was sent is not sent again because of a full disk."""
        try:
            self._state.save()
        except OSError as error:
            self._tell({"problem": describe(error)})


def _send_picture(service: Service, message: Message, folder: Path) -> None:
    name = f"{message['name']}_epoch{message['epoch']:04}.png"
    file = folder / name
    file.write_bytes(base64.b64decode(message["png"]))
    service.send_picture(message["epoch"], message["name"], file)


def serve(lines: Iterable[bytes], tell: Tell) -> None:
    """Send the lines of a trainer until their end."""
    source = iter(lines)
    opening = json.loads(next(source))
    run = ServiceRun(
        project=opening["project"],
        name=opening["name"],
        folder=Path(opening["folder"]),
        config=opening["config"],
        config_text=opening["config_text"],
    )
    path = Path(opening["state"])
    with (
        only_process(path),
        tempfile.TemporaryDirectory(prefix="dfine_") as pictures,
    ):
        state = LoggedState.load(path, opening["mark"])

        def open_service(identifier: str | None) -> Service:
            module = importlib.import_module(opening["module"])
            service: Service = module.make_service()
            opened = service.open(run, identifier)
            state.identifier = opened.identifier
            state.save()
            tell({"opened": opened._asdict()})
            return service

        sender = Sender(open_service, state, tell, Path(pictures))
        sender.send_waiting()
        _handle_all(source, sender)


def _handle_all(source: Iterable[bytes], sender: Sender) -> None:
    finished = False
    for line in source:
        message = json.loads(line)
        if message["kind"] == "close":
            finished = message["finished"]
            break
        sender.handle(message)
    sender.close(finished=finished)


def _end_without_trainer(source: BinaryIO) -> None:
    """End this process some time after the trainer, also while a service hangs."""
    poll = select.poll()
    poll.register(
        source, 0
    )  # waits for the end of the input, which may not be read yet
    poll.poll()
    time.sleep(SECONDS_WITHOUT_TRAINER)
    os._exit(1)


def main() -> None:
    """Serve the trainer that has started this process.

    Standard input and output are moved away, because libraries print, and start programs that read.
    """
    source = os.fdopen(os.dup(0), "rb")
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)

    threading.Thread(
        target=_end_without_trainer, args=[source], daemon=True
    ).start()

    def tell(message: Mapping[str, Any]) -> None:
        try:
            channel.write(json.dumps(message) + "\n")
            channel.flush()
        except OSError:  # the trainer is gone
            pass

    try:
        serve(source, tell)
    except Exception as error:
        tell({"problem": describe(error)})
    channel.close()
    os._exit(0)  # handlers of libraries could wait for the network
