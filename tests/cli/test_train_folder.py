"""`dfine train` writes to a folder in runs/, unless the user has chosen another one."""

import pytest

from src.cli import train
from src.detection import start_choice
from tests.fixtures.tiny import ROOT

CONFIG = ROOT / "configs/dfine/custom/dfine_dinov3_s_custom.yml"


@pytest.fixture
def arguments_of(tmp_path, monkeypatch):
    """Return a function that returns the arguments of the trainer for arguments of the command."""
    monkeypatch.chdir(tmp_path)

    def trainer_arguments(*words, config=CONFIG):
        start = start_choice.StartChoice(config, None, "chosen by a test")
        monkeypatch.setattr(start_choice, "choose_start", lambda _: start)
        parsed = train.make_parser().parse_args(["--data", "d", *words])
        return train.trainer_arguments(parsed)

    return trainer_arguments


def folder_in(words: list[str]) -> str | None:
    if "--output-dir" not in words:
        return None
    return words[words.index("--output-dir") + 1]


def test_each_training_has_a_folder_in_runs(arguments_of):
    assert folder_in(arguments_of()) == "runs/train"
    assert folder_in(arguments_of()) == "runs/train2"
    assert folder_in(arguments_of("--name", "cats")) == "runs/cats"


def test_a_folder_of_the_command_line_is_used(arguments_of):
    assert folder_in(arguments_of("--output-dir", "here")) == "here"
    words = arguments_of("-u", "output_dir=here")
    assert folder_in(words) is None and "output_dir=here" in words


def test_the_folder_of_a_users_configuration_is_used(arguments_of, tmp_path):
    own = tmp_path / "own.yml"
    own.write_text(f"__include__: ['{CONFIG}']\noutput_dir: here\n")
    assert folder_in(arguments_of(config=own)) is None
    assert not (tmp_path / "runs").exists()
