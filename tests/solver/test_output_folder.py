"""The output folder is locked by one run, which overwrites only results of this project."""

import pytest

from src.core.errors import ConfigError
from src.core.yaml_config import RunSettings
from src.solver.checkpoint import CheckpointFolder
from src.solver.output_folder import (
    claimed,
    prepare_for_evaluation,
    refuse_another_run,
)
from tests.fixtures.states import small_state


def claim(folder, **settings):
    return claimed(RunSettings(output_dir=str(folder), **settings))


def test_a_folder_is_made_and_held_by_one_run(tmp_path):
    with claim(tmp_path / "new") as checkpoints:
        assert checkpoints.folder == tmp_path / "new"
        with (
            pytest.raises(ConfigError, match="is in use by process"),
            claim(tmp_path / "new"),
        ):
            pass
    with claim(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    "name",
    [
        "best.pth",
        "last.pth",
        "log.txt",
        "results.csv",
        "curves.png",
        "config.yml",
        "images.val.npz",
    ],
)
def test_a_foreign_file_under_the_name_of_a_result_is_refused_and_unchanged(
    tmp_path, name
):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=name), claim(tmp_path):
        pass
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "earlier"])
def test_a_file_where_a_folder_of_results_goes_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(ConfigError, match=f"{name} is not a folder"),
        claim(tmp_path),
    ):
        pass


def test_a_run_of_this_project_may_be_resumed_or_overwritten(tmp_path):
    CheckpointFolder(tmp_path).save_last(small_state())
    for settings in (
        {"overwrite": True},
        {"resume": "auto"},
        {"resume": str(tmp_path / "last.pth")},
    ):
        with claim(tmp_path, **settings) as checkpoints:
            assert (checkpoints.folder / "last.pth").exists()


def test_another_run_in_the_folder_of_a_run_is_refused(tmp_path):
    CheckpointFolder(tmp_path).save_last(small_state())
    (tmp_path / "other").mkdir()
    CheckpointFolder(tmp_path / "other").save_last(small_state())
    for settings in ({}, {"resume": str(tmp_path / "other/last.pth")}):
        with (
            pytest.raises(ConfigError, match="holds another run"),
            claim(tmp_path, **settings),
        ):
            pass
    refuse_another_run(RunSettings(output_dir=str(tmp_path), test_only=True))


def test_a_run_that_starts_again_before_its_first_checkpoint_is_not_refused(
    tmp_path,
):
    (tmp_path / "log.txt").write_text(
        '{"epoch": 0, "stage": 1, "best_metric": "AP"}\n'
    )
    with claim(tmp_path, resume="auto"):
        pass


def test_start_weights_under_the_name_of_a_result_are_not_replaced(tmp_path):
    CheckpointFolder(tmp_path).save_best(small_state())
    with (
        pytest.raises(ConfigError, match="best.pth"),
        claim(tmp_path, tuning=str(tmp_path / "best.pth")),
    ):
        pass


def test_an_evaluation_replaces_no_file_of_others(tmp_path):
    (tmp_path / "eval.json").write_text("mine")
    with pytest.raises(ConfigError, match="eval.json"):
        prepare_for_evaluation(tmp_path)
