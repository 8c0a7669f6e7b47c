"""The thread of the predictions and the places of requests."""

import asyncio
import threading

import pytest

pytest.importorskip("starlette")

from src.serving.refusals import Refused
from src.serving.worker import Places, Worker, result_within


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    assert worker.close(10)


def test_jobs_run_one_after_the_other_in_order(worker):
    seen = []
    jobs = [worker.start(lambda n=n: seen.append(n)) for n in range(20)]
    jobs[-1].result(10)
    assert seen == list(range(20))


def test_an_error_of_a_job_reaches_its_request_and_not_the_next_one(worker):
    bad = worker.start(lambda: 1 / 0)
    good = worker.start(lambda: 5)
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert good.result(10) == 5


def test_a_late_job_is_refused_and_never_begins(worker):
    gate = threading.Event()
    begun = []
    worker.start(lambda: gate.wait(10))
    late = worker.start(lambda: begun.append(1))
    with pytest.raises(Refused, match="within 0.05 s") as caught:
        asyncio.run(result_within(late, 0.05))
    assert caught.value.status == 503
    assert worker.busy_seconds > 0
    gate.set()
    worker.start(lambda: None).result(10)
    assert begun == []


def test_closing_waits_no_longer_than_it_should():
    gate = threading.Event()
    worker = Worker()
    worker.start(lambda: gate.wait(10))
    assert not worker.close(0.05)
    gate.set()
    assert worker.close(10)


def test_places_are_limited():
    places = Places(2)
    assert [places.enter(), places.enter(), places.enter()] == [
        True,
        True,
        False,
    ]
    places.leave()
    assert places.enter()
