"""Packages that only some commands need."""

import os
import subprocess
import sys

import pytest

from src.core.errors import ConfigError
from src.runtime.optional import ADVICE, import_optional, is_installed
from tests.fixtures.tiny import ROOT


def test_a_package_that_is_there_is_imported():
    assert import_optional("json", "x").dumps([1]) == "[1]"


def test_a_missing_package_is_reported_with_the_command_that_installs_it(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(
        ConfigError, match=r"^videos need OpenCV: pip install opencv$"
    ):
        import_optional("cv2", "videos need OpenCV: pip install opencv")


@pytest.mark.parametrize("name", ADVICE)
def test_a_missing_known_package_is_reported_with_its_own_advice(
    monkeypatch, name
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match="pip install"):
        import_optional(name)


def test_a_package_that_lacks_another_one_is_reported_with_both(
    tmp_path, monkeypatch
):
    (tmp_path / "half_installed.py").write_text(
        "import a_package_that_nobody_has"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"\(half_installed needs a_package_that_nobody_has\)$",
    ):
        import_optional("half_installed", "x")


def test_onnx_runtime_reports_nothing_to_its_maker_unless_a_user_allows_it(
    tmp_path,
):
    look = "import os, src.runtime.optional; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    for given, expected in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "0"}, "0")):
        ended = subprocess.run(
            [sys.executable, "-c", look],
            env=environment | given,
            capture_output=True,
            text=True,
            check=True,
        )
        assert ended.stdout.strip() == expected


def test_a_package_that_was_blocked_in_this_process_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert not is_installed("wandb")


def test_a_folder_of_results_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / "a_logger/run-1").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("json") and not is_installed("a_logger")
    with pytest.raises(ConfigError, match="^pip install a_logger$"):
        import_optional("a_logger", "pip install a_logger")
