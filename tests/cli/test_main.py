"""`dfine` lists its commands, starts them, and answers mistakes with one sentence."""

import subprocess
import sys

import pytest

from src import __version__
from src.cli import main as dfine
from tests.fixtures.golden import ROOT


@pytest.fixture
def typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dfine"])


def test_help_lists_every_command(typed, capsys):
    dfine.main(["--help"])
    text = capsys.readouterr().out
    for name, command in dfine.SUBCOMMANDS.items():
        assert f"  {name} " in text and command.summary in text
    dfine.main([])
    assert capsys.readouterr().out == text


def test_help_names_the_command_as_it_was_typed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dfine-dinov3"])
    dfine.main(["--help"])
    assert "usage: dfine-dinov3 COMMAND" in capsys.readouterr().out


def test_the_version_is_printed(typed, capsys):
    dfine.main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


def test_a_misspelt_command_is_suggested(typed, capsys):
    with pytest.raises(SystemExit) as end:
        dfine.main(["tarin"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error[2]: dfine has no command 'tarin'; did you mean dfine train?\n"
    )


@pytest.mark.parametrize("name", dfine.SUBCOMMANDS)
def test_every_command_has_a_help_with_an_example(typed, name, capsys):
    with pytest.raises(SystemExit) as end:
        dfine.main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: dfine {name}")
    assert f"dfine {name}" in text.partition("\n\n")[2]


def test_python_m_is_the_same_command():
    command = [sys.executable, "-m", "src", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{__version__}\n"
