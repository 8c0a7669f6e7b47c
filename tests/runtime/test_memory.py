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
