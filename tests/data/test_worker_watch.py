"""Workers that die or hang are reported when their next batch is due."""

import json
import os
import signal
import threading
import time
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.core.detection_data import DetectionData
from src.core.errors import DataError, ResourceError
from src.data import dataloader, worker_watch
from src.data.dataloader import DataLoader
from src.data.worker_watch import watched
from src.runtime import process
from tests.fixtures.processes import run_forked
from tests.fixtures.progress import wait_until


@pytest.fixture(autouse=True)
def short_interval(monkeypatch):
    for module in (worker_watch, dataloader):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.2)


class Numbers(DetectionData):
    """Eight numbers; something happens at the sixth."""

    class_names = ("cat",)
    last = torch.full((2,), -1).share_memory_()

    def __init__(self, happen):
        self.happen = happen

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.last[torch.utils.data.get_worker_info().id] = index
        if index == 5:
            self.happen()
        return index

    def objects(self, index):
        raise NotImplementedError

    def last_image(self, worker):
        return f"number {int(self.last[worker])}"


def loaded(happen, **settings) -> list[list[int]]:
    return list(
        DataLoader(
            Numbers(happen),
            list,
            **{
                "batch_size": 2,
                "num_workers": 1,
                "pin_memory": False,
                **settings,
            },
        )
    )


def fault(happen, **settings) -> str:
    with pytest.raises(ResourceError) as caught:
        loaded(happen, **settings)
    return str(caught.value)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (
            signal.SIGKILL,
            "was killed by SIGKILL, likely because memory ran out; its last image: number 5;",
        ),
        (
            signal.SIGBUS,
            "was killed by SIGBUS, likely because shared memory is full (/dev/shm has ",
        ),
        (signal.SIGTERM, "was killed by SIGTERM; its last image: number 5;"),
    ],
)
def test_killed_worker_is_reported_with_its_signal_and_images(
    workers, number, text
):
    message = fault(lambda: os.kill(os.getpid(), number), num_workers=workers)
    assert message.startswith("loader worker 0 (pid ") and text in message


def test_worker_that_ended_by_itself_is_reported_with_its_code():
    assert "ended with code 3; its last image: number 5;" in fault(
        lambda: os._exit(3)
    )


@pytest.fixture
def inner(monkeypatch):
    """Return a list of torch's iterators, in the order in which they are made."""
    made, original = [], torch.utils.data.DataLoader.__iter__

    def remember(loader):
        made.append(original(loader))
        return made[-1]

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", remember)
    return made


def test_a_dead_worker_is_reported_by_the_next_batch_and_not_in_between(inner):
    received = torch.zeros(1).share_memory_()

    def happen():
        while not received:  # earlier batches have been handed over by then
            time.sleep(0.02)
        os._exit(1)

    batches = iter(
        DataLoader(
            Numbers(happen), list, batch_size=2, num_workers=1, pin_memory=False
        )
    )
    seen = [next(batches)]
    worker = inner[0]._workers[0]
    wait_until(
        lambda: not inner[0]._worker_result_queue.empty(),
        worker.pid,
        lambda: "no second batch",
    )
    received.fill_(1)
    wait_until(
        lambda: not worker.is_alive(), worker.pid, lambda: "the worker lives on"
    )
    seen.append(next(batches))
    with pytest.raises(ResourceError):
        next(batches)
    assert seen == [[0, 1], [2, 3]]


def test_data_set_that_does_not_know_its_last_image_is_watched_too(monkeypatch):
    monkeypatch.delattr(Numbers, "last_image")
    assert "its last image: not known;" in fault(lambda: os._exit(3))


def test_hanging_worker_is_reported_after_the_timeout(monkeypatch):
    """Time passes once the worker hangs: how long a busy machine took until then does not matter."""
    seconds = count(1)
    clock = SimpleNamespace(
        monotonic=lambda: next(seconds) if int(Numbers.last.max()) == 5 else 0
    )
    monkeypatch.setattr(worker_watch, "time", clock)
    Numbers.last.fill_(-1)
    assert fault(signal.pause, data_timeout=0.6).startswith(
        "no batch arrived within 0.6 s (data_timeout): a loader worker hangs or is very slow; "
        "last images of the workers: number 5;"
    )


def is_stopped(pid: int) -> bool:
    return (
        Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        == "T"
    )


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def in_memory(numbers) -> torch.Tensor:
    """Collate numbers into a tensor, whose memory the worker hands over when it is asked."""
    return torch.tensor(numbers)


def test_worker_stopped_before_its_batch_ends_the_wait():
    message = fault(stop_itself, data_timeout=0.6)
    assert message.startswith("no batch arrived within 0.6 s (data_timeout)")
    assert "last images of the workers: number 5;" in message


def test_worker_stopped_between_announcing_and_handing_over_ends_the_wait(
    inner,
):
    """The waiting thread is then blocked inside the transfer, where torch's timeout does not count."""
    loader = DataLoader(
        Numbers(stop_itself), in_memory, batch_size=2, num_workers=1,
        pin_memory=False, data_timeout=0.6,
    )  # fmt: skip
    began = iter(loader)
    assert next(began).tolist() == [0, 1]
    worker = inner[0]._workers[0]
    wait_until(
        lambda: is_stopped(worker.pid), os.getpid(), lambda: "it still runs"
    )
    with pytest.raises(ResourceError, match=r"no batch arrived within 0\.6 s"):
        next(began)
    worker.join()


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["all batches", "early"])
def test_worker_that_is_stopped_at_the_end_does_not_live_on(inner, ends):
    batches = iter(
        DataLoader(Numbers(lambda: None), list, batch_size=2, num_workers=1,
                   pin_memory=False)
    )  # fmt: skip
    for _ in range(4 if ends == "all batches" else 1):
        next(batches)
    worker = inner[0]._workers[0]
    os.kill(worker.pid, signal.SIGSTOP)
    if ends == "early":
        batches.close()
    else:
        assert list(batches) == []
    worker.join()
    assert worker.exitcode == -signal.SIGKILL


class Blocked:
    """Stands for an iterator whose thread never comes back, whatever happens to the workers."""

    _workers = ()

    def __next__(self):
        threading.Event().wait()


def test_command_whose_main_thread_never_comes_back_is_ended_with_the_reason(
    tmp_path,
):
    def command():
        list(watched(Blocked, 0.5, str))

    ended = run_forked(
        lambda: process.run_command(command, status_dir=lambda: tmp_path),
        tmp_path,
    )
    assert ended.code == 6
    assert ended.err.startswith(
        "error[6]: no batch arrived within 0.5 s (data_timeout)"
    )
    status = json.loads((tmp_path / "run_status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 6)
    assert status["message"].startswith("no batch arrived within 0.5 s")


def test_outside_a_command_the_reason_is_only_logged(caplog):
    process.end_from_thread(ResourceError("no batch"))
    assert "no batch" in caplog.text


@pytest.mark.parametrize("timeout", [0, 60])
def test_slow_batch_within_the_timeout_is_waited_for(timeout):
    assert loaded(lambda: time.sleep(1), data_timeout=timeout) == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]


def test_fault_of_the_data_stays_what_it_is():
    def happen():
        raise DataError("image x is damaged")

    with pytest.raises(DataError, match="image x is damaged"):
        loaded(happen)


def test_error_of_a_worker_stays_what_it_is():
    with pytest.raises(
        RuntimeError, match="Caught RuntimeError in DataLoader worker process 0"
    ):
        loaded(lambda: torch.zeros(2) @ torch.zeros(3))


def test_handler_of_ended_processes_is_unchanged():
    before = signal.getsignal(signal.SIGCHLD)
    loaded(lambda: None)
    assert signal.getsignal(signal.SIGCHLD) == before


class PinnedBatches:
    """Batches whose thread for pinned memory ends with an error; torch then only times out."""

    _workers = ()

    def __init__(self, error: Exception) -> None:
        def fail() -> None:
            raise error

        self._pin_memory_thread = threading.Thread(target=fail)

    def __next__(self):
        if not self._pin_memory_thread.ident:
            self._pin_memory_thread.start()
        self._pin_memory_thread.join()
        raise RuntimeError("DataLoader timed out after 5 seconds")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            OSError(24, "Too many open files"),
            "too many open files: this process",
        ),
        (RuntimeError("CUDA error: mine"), "CUDA error: mine"),
    ],
    ids=["limit", "other"],
)
def test_an_error_of_the_thread_that_pins_memory_is_reported_at_once(
    error, reason, capfd
):
    hook = threading.excepthook
    batches = PinnedBatches(error)
    with pytest.raises(
        ResourceError,
        match=f"^batches cannot be copied to pinned memory: {reason}",
    ):
        next(watched(lambda: batches, 300.0, str))
    assert threading.excepthook is hook
    assert "Traceback" not in capfd.readouterr().err
