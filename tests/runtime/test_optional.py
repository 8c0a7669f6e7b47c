"""Packages that only some commands need."""

import sys

import pytest

from src.core.errors import ConfigError
from src.runtime.optional import import_optional


def test_a_package_that_is_there_is_imported():
    assert import_optional("json", "x").dumps([1]) == "[1]"


def test_a_package_that_is_not_there_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match=r"^videos need OpenCV: pip install opencv$"):
        import_optional("cv2", "videos need OpenCV: pip install opencv")


def test_a_package_that_lacks_another_one_is_told_with_both(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import a_package_that_nobody_has")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"\(half_installed needs a_package_that_nobody_has\)$"):
        import_optional("half_installed", "x")
