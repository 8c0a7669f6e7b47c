"""Workers that die or hang are reported when their next batch is due."""

import os
import signal
import time
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from src.core.contracts import DetectionData
from src.core.errors import DataError, ResourceError
from src.data import dataloader, worker_watch
from src.data.dataloader import DataLoader
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


def test_a_dead_worker_is_reported_by_the_next_batch_and_not_in_between(
    monkeypatch,
):
    inner, original = [], torch.utils.data.DataLoader.__iter__

    def remember(loader):
        inner.append(original(loader))
        return inner[-1]

    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", remember)
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
