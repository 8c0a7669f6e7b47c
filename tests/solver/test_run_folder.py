"""A new run gets a folder of its own."""

import json
import threading
from pathlib import Path

import pytest

from src.core.errors import CheckpointError, ConfigError
from src.runtime.own_files import YAML_HEADER
from src.solver.run_folder import (
    choose_folder,
    folder_to_resume,
    has_own_folder,
    new_folder,
)
from tests.fixtures.tiny import ROOT

SHIPPED = ROOT / "configs/dfine/custom/dfine_dinov3_s_custom.yml"


def failed(folder, status="failed") -> None:
    content = {"status": status, "exit_code": 2, "message": "no data"}
    (folder / "run_status.json").write_text(json.dumps(content))


def test_runs_of_the_same_name_are_numbered(tmp_path):
    root = tmp_path / "runs"
    names = [choose_folder("mine", root).name for _ in range(3)]
    assert names == ["mine", "mine2", "mine3"]
    assert all((root / name).is_dir() for name in names)


def test_runs_that_start_at_the_same_time_get_different_folders(tmp_path):
    chosen = []
    threads = []
    for _ in range(8):
        thread = threading.Thread(
            target=lambda: chosen.append(choose_folder("mine", tmp_path))
        )
        threads.append(thread)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(chosen)) == 8


def test_the_folder_of_a_run_that_failed_before_its_first_result_is_used_again(
    tmp_path,
):
    folder = choose_folder("mine", tmp_path)
    failed(folder)
    assert choose_folder("mine", tmp_path) == folder


@pytest.mark.parametrize(
    ("name", "content"), [("log.txt", ""), ("notes.md", "mine")]
)
def test_a_folder_with_any_other_file_is_not_used_again(
    tmp_path, name, content
):
    folder = choose_folder("mine", tmp_path)
    failed(folder)
    (folder / name).write_text(content)
    assert choose_folder("mine", tmp_path).name == "mine2"


def test_the_folder_of_a_run_that_has_just_started_is_not_used_again(tmp_path):
    folder = choose_folder("mine", tmp_path)
    failed(folder, status="running")
    assert choose_folder("mine", tmp_path).name == "mine2"


def test_a_file_of_that_name_stays(tmp_path):
    (tmp_path / "mine").write_text("notes")
    assert choose_folder("mine", tmp_path).name == "mine2"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp"])
def test_a_name_with_folders_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="expected the name of a folder"):
        choose_folder(name, tmp_path)


def test_a_file_in_place_of_the_root_is_refused(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(ConfigError, match="runs is not a folder"):
        choose_folder("mine", tmp_path / "runs")


def test_a_name_that_is_too_long_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be created: File name too"):
        choose_folder("x" * 300, tmp_path)


def test_a_configuration_of_this_project_does_not_choose_the_folder():
    assert not has_own_folder(SHIPPED, [])
    assert not has_own_folder(None, ["epochs=3"])


def test_a_setting_of_the_command_line_chooses_the_folder():
    assert has_own_folder(SHIPPED, ["epochs=3", "output_dir=results"])


def own_config(tmp_path, text: str) -> Path:
    path = tmp_path / "own.yml"
    path.write_text(f"{text}__include__: ['{Path(SHIPPED).resolve()}']\n")
    return path


def test_a_configuration_of_the_user_chooses_the_folder_if_it_names_one(
    tmp_path,
):
    config = own_config(tmp_path, "output_dir: results\n")
    assert has_own_folder(config, [])
    config = own_config(tmp_path, "epochs: 3\n")
    assert not has_own_folder(config, [])


def test_the_configuration_that_a_run_has_written_does_not_choose_the_folder(
    tmp_path,
):
    config = own_config(tmp_path, f"{YAML_HEADER}output_dir: results\n")
    assert not has_own_folder(config, [])


def test_a_new_folder_is_removed_unless_something_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with new_folder("mine") as empty:
        assert empty.is_dir()
    assert not empty.exists()
    with new_folder("mine") as used:
        (used / "log.txt").touch()
    assert used.is_dir()


def test_only_the_training_state_of_a_run_can_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        folder_to_resume(tmp_path)
    for name in ("last.pth", "best.pth"):
        (tmp_path / name).touch()
    assert folder_to_resume(tmp_path) == tmp_path
    assert folder_to_resume(tmp_path / "last.pth") == tmp_path
    with pytest.raises(CheckpointError, match="pass the folder of the run"):
        folder_to_resume(tmp_path / "best.pth")
