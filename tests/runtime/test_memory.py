"""Settings of the process's memory allocator."""

import ctypes
import platform

import pytest

from src.runtime.memory import keep_freed_memory


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
