"""The completion script completes commands and flags without starting Python."""

import shutil
import subprocess

import pytest

from src.cli.completion import script
from src.cli.main import SUBCOMMANDS

BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="bash is not installed")


def completed(*words: str) -> list[str]:
    """Return what bash suggests for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    code = (
        f"{script('bash')}\nCOMP_WORDS=({line})\nCOMP_CWORD={len(words) - 1}\n"
        "_dfine_complete\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        [BASH, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_commands_are_completed():
    assert completed("dfine", "re") == ["resume", "report"]
    assert completed("dfine", "") == list(SUBCOMMANDS)


def test_flags_are_completed():
    assert completed("dfine", "train", "--e") == ["--epochs"]
    assert "--threshold" in completed("dfine", "predict", "--")


def test_files_are_left_to_the_shell():
    assert completed("dfine", "predict", "be") == []


def test_zsh_loads_the_functions_of_bash_first():
    assert script("zsh").endswith(script("bash"))
    assert "bashcompinit" in script("zsh")
