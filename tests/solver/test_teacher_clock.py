import time

import pytest
import torch

from src.solver import teacher_clock
from src.solver.teacher_clock import TeacherClock, speed_without_teacher


def test_passes_on_a_cpu_are_measured_at_once(monkeypatch):
    now = [5.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = TeacherClock(torch.device("cpu"))
    assert clock.mean() is None
    for seconds in (0.25, 0.75):
        with clock.measure():
            now[0] += seconds
        now[0] += 8.0  # not a part of a pass
    assert clock.mean() == 0.5
    clock.restart()
    assert clock.mean() is None


class Event:
    """A CUDA event that is over `delay` queries later; its time is that of a common clock, in ms."""

    now = 0.0
    delay = 0

    def __init__(self, enable_timing):
        assert enable_timing
        self.queries = 0

    def record(self):
        Event.now += 250.0
        self.time = Event.now

    def query(self):
        self.queries += 1
        return self.queries > Event.delay

    def elapsed_time(self, end):
        return end.time - self.time


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "delay", 0)
    return TeacherClock(torch.device("cuda"))


def test_passes_on_a_gpu_are_measured_by_events(on_gpu):
    for _ in range(3):
        with on_gpu.measure():
            pass
    assert on_gpu.mean() == 0.25


def test_events_that_are_not_over_are_read_later(on_gpu, monkeypatch):
    monkeypatch.setattr(Event, "delay", 1)
    with on_gpu.measure():
        pass
    assert on_gpu.mean() is None
    assert on_gpu.mean() == 0.25


def test_only_a_limited_number_of_events_waits_to_be_read(on_gpu, monkeypatch):
    monkeypatch.setattr(teacher_clock, "MAX_UNREAD", 2)
    for _ in range(5):
        with on_gpu.measure():
            pass
    assert len(on_gpu._unread) == 2
    assert on_gpu.mean() == 0.25
    assert not on_gpu._unread


def test_the_speed_without_a_teacher_is_that_of_the_remaining_time():
    assert speed_without_teacher(60, 20.0, 10, 0.5) == 4.0
