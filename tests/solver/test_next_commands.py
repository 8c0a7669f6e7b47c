"""The commands after a training work when they are copied."""

import shlex
import sys
from pathlib import Path

import pytest

from src.solver import next_commands as module
from src.solver.next_commands import (
    next_commands,
    python_command,
    running_program,
)
from tests.fixtures.tiny import ROOT


def test_the_short_command_is_suggested_to_its_users():
    assert next_commands(Path("runs/mine"), "data/val", ["dfine"]) == [
        "dfine val runs/mine",
        "dfine predict runs/mine data/val",
        "dfine export runs/mine",
    ]


def test_the_scripts_are_suggested_to_their_users():
    lines = next_commands(Path("output/a"), "val", ["python", "train.py"])
    assert lines == [
        "python train.py -r output/a/best.pth --test-only",
        "python tools/inference/torch_inf.py -r output/a/best.pth -i val",
        "python tools/deployment/export_onnx.py -r output/a/best.pth",
    ]
    for line in lines:
        assert (ROOT / line.split()[1]).is_file()


@pytest.mark.parametrize(
    "program", [["dfine"], ["python", "/my code/train.py"]]
)
def test_names_with_spaces_and_quotes_are_quoted(program):
    folder = Path("runs/it's mine")
    for line in next_commands(folder, "my images", program):
        words = shlex.split(line)
        assert any("it's mine" in word for word in words)
        assert words[0] == program[0]


def test_train_py_is_started_again_by_its_path(monkeypatch):
    monkeypatch.setattr(module, "python_command", lambda _: "python")
    script = str(ROOT / "train.py")
    assert running_program([script]) == ["python", script]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Return a function that installs a command beside an interpreter, and returns the interpreter."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(*names: str) -> str:
        for name in (*names, "python"):
            (tmp_path / name).write_text("#!/bin/sh\n")
            (tmp_path / name).chmod(0o755)
        return str(tmp_path / "python")

    return install


@pytest.mark.parametrize("name", ["dfine", "dfine-dinov3"])
def test_the_command_is_started_again_by_the_name_it_was_started_with(
    environment, name
):
    python = environment("dfine", "dfine-dinov3")
    assert running_program([f"/bin/{name}"], python) == [name]


def test_a_rank_of_the_command_is_started_again_as_the_command(environment):
    python = environment("dfine", "dfine-dinov3")
    script = "/env/lib/dfine_dinov3/cli/trainer.py"
    assert running_program([script], python) == ["dfine"]


def test_a_command_of_another_environment_is_not_suggested(environment):
    environment("dfine")
    words = running_program(["/x/__main__.py"], "/other/python")
    assert words == ["/other/python", "-m", "src"]


def test_an_interpreter_that_is_not_on_the_path_is_named_completely(
    monkeypatch,
):
    monkeypatch.setenv("PATH", "/nowhere")
    assert python_command(sys.executable) == sys.executable
