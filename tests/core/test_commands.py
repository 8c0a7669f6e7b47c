"""Messages name commands that the reader has."""

from src.core import commands
from src.core.commands import command_name


def test_in_a_clone_a_command_is_its_file():
    assert command_name("check") == "tools/dataset/check.py"


def test_in_the_installed_package_a_command_is_one_of_dfine(
    monkeypatch, tmp_path
):
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli/main.py").touch()
    monkeypatch.setattr(
        commands, "configs_folder", lambda: tmp_path / "configs"
    )
    assert command_name("convert") == "dfine convert"
