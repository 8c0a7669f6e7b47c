"""A command that was started with nohup continues when its terminal is closed."""

import signal
import sys

import pytest

from src.cli.launch import run_child
from src.runtime.hangup import without_ignored_hangup
from src.runtime.stop import StopRequest
from tests.fixtures.processes import run_fresh


@pytest.fixture
def ignored_hangup():
    """A process that was started with nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_only_a_hangup_that_is_ignored_is_left_out(ignored_hangup):
    both = (signal.SIGTERM, signal.SIGHUP)
    assert without_ignored_hangup(both) == [signal.SIGTERM]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    assert without_ignored_hangup(both) == [*both]


def test_a_run_started_with_nohup_is_not_stopped_by_its_terminal(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ended = run_fresh(stop_by_sigterm_alone)
    assert ended.code == 0, ended.err


def stop_by_sigterm_alone() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGHUP)
        assert not stop.asked
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked


def test_a_process_of_torchrun_is_stopped_by_it_even_with_nohup(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    ended = run_fresh(stop_by_sighup)
    assert ended.code == 0, ended.err


def stop_by_sighup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked


def test_the_hangup_of_a_terminal_is_not_passed_on_with_nohup(ignored_hangup):
    code = (
        "import os, signal; os.kill(os.getppid(), signal.SIGHUP); "
        "import time; time.sleep(0.3)"
    )
    ended = run_child([sys.executable, "-c", code])
    assert (ended.code, ended.stopped_by) == (0, None)
