"""The memory of this process: settings of its allocator, its peak, and what is available."""

import ctypes
import platform
import subprocess
import sys

import pytest

from src.runtime import memory
from src.runtime.memory import available_memory, keep_freed_memory
from tests.fixtures.golden import ROOT


def test_allocator_without_such_a_setting_is_left_as_it_is(monkeypatch):
    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert keep_freed_memory.__wrapped__() is False


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc has this setting"
)
def test_glibc_takes_the_setting():
    assert keep_freed_memory.__wrapped__() is True


def test_the_setting_is_a_size_that_fits_a_c_int(monkeypatch):
    """A larger number would become negative in C, without an error."""
    calls = []

    class Libc:
        def __init__(self, name):
            pass

        def mallopt(self, option, value):
            calls.append((option, value))
            return 1

    monkeypatch.setattr(ctypes, "CDLL", Libc)
    assert keep_freed_memory.__wrapped__() is True
    assert [option for option, _ in calls] == [-3, -1]
    assert all(1 << 26 < value < 1 << 31 for _, value in calls)


def test_available_memory_is_limited_by_the_container(monkeypatch):
    files = {
        "/proc/meminfo": ["MemTotal: 9 kB", "MemAvailable:    4000000 kB"],
        "/sys/fs/cgroup/memory.max": ["3000000000"],
        "/sys/fs/cgroup/memory.current": ["1000000000"],
    }
    monkeypatch.setattr(
        memory, "system_lines", lambda path: files.get(path, [])
    )
    assert available_memory() == 2_000_000_000
    files["/sys/fs/cgroup/memory.stat"] = ["anon 5", "inactive_file 500000000"]
    assert available_memory() == 2_500_000_000
    files["/sys/fs/cgroup/memory.max"] = ["max"]
    assert available_memory() == 4_096_000_000


def test_the_limit_of_a_containing_group_counts_too(monkeypatch):
    """A job of a cluster is in a group below the one with the limit."""
    job = "/sys/fs/cgroup/slurm/job_1"
    files = {
        "/proc/meminfo": ["MemAvailable:    4000000 kB"],
        "/proc/self/cgroup": ["1:name=x:/other", "0::/slurm/job_1/step_0"],
        f"{job}/memory.max": ["2000000000"],
        f"{job}/memory.current": ["500000000"],
        f"{job}/step_0/memory.max": ["max"],
        f"{job}/step_0/memory.current": ["400000000"],
    }
    monkeypatch.setattr(
        memory, "system_lines", lambda path: files.get(path, [])
    )
    assert available_memory() == 1_500_000_000
    files["/sys/fs/cgroup/slurm/memory.max"] = ["1000000000"]
    files["/sys/fs/cgroup/slurm/memory.current"] = ["900000000"]
    assert available_memory() == 100_000_000


def test_the_peak_is_reset_to_what_is_used_now():
    block = bytearray(b"1") * (200 << 20)
    before = memory.peak_memory()
    del block
    if not memory.reset_peak_memory():
        pytest.skip("this system does not allow it")
    after = memory.peak_memory()
    assert after < before - 150_000_000
    assert abs(after - memory.resident_memory()) < 50 << 20


def test_the_peak_is_not_that_of_the_program_that_started_this_process():
    block = bytearray(b"1") * (300 << 20)
    code = "from src.runtime.memory import peak_memory; print(peak_memory())"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 0 < int(done.stdout) < len(block) // 2, done.stderr


def test_the_peak_is_known_without_proc(monkeypatch):
    monkeypatch.setattr(memory, "system_lines", lambda path: [])
    assert memory.peak_memory() >= 1 << 20
