"""Files given by -r and -t are read, and settings are not changed."""

from dataclasses import asdict

import pytest
import torch

from src.core.errors import CheckpointError
from src.core.yaml_config import RunSettings
from src.runtime.weight_files import write_tensor_file
from src.solver.checkpoint import CheckpointFolder
from src.solver.start_weights import read_start, resumes_in
from tests.fixtures.states import small_state


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights.pth"
    write_tensor_file(
        path,
        {
            "model": {"w": torch.ones(3)},
            "meta": {"classes": [{"id": 1, "name": "cat"}]},
        },
    )
    return path


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    CheckpointFolder(folder).save_last(small_state(3))
    return folder


def read(folder, **settings):
    """Read the files that settings name, and check that the settings are unchanged."""
    made = RunSettings(output_dir=str(folder), **settings)
    before = asdict(made)
    start = read_start(made, CheckpointFolder(folder))
    assert asdict(made) == before
    return start


def test_without_r_and_t_nothing_is_read(tmp_path):
    start = read(tmp_path)
    assert start.path is None and start.state is None and not start.tunes


def test_t_names_weights_whose_classes_may_differ(tmp_path, weights):
    start = read(tmp_path, tuning=str(weights))
    assert (
        start.path == weights
        and start.tunes
        and not start.keeps_classes
        and start.state is None
    )


def test_r_names_a_state_to_resume(tmp_path, run):
    start = read(tmp_path, resume=str(run / "last.pth"))
    assert (
        start.path == run / "last.pth"
        and start.state["progress"]["total_steps"] == 3
    )
    assert start.keeps_classes


def test_r_with_test_only_names_weights_to_evaluate_also_if_start_weights_are_configured(
    run, weights
):
    start = read(
        run, resume=str(weights), tuning=str(run / "last.pth"), test_only=True
    )
    assert start.path == weights and start.state is None and not start.tunes


def test_auto_resumes_the_run_in_the_output_folder_and_not_from_start_weights(
    run, weights
):
    start = read(run, resume="auto", tuning=str(weights))
    assert start.path == run / "last.pth" and not start.tunes


def test_auto_in_an_empty_folder_starts_from_the_weights_of_t(
    tmp_path, weights
):
    start = read(tmp_path, resume="auto", tuning=str(weights))
    assert start.path == weights and start.tunes


def test_weights_without_a_state_cannot_be_resumed(tmp_path, weights):
    with pytest.raises(
        CheckpointError, match="holds weights but no training state"
    ):
        read(tmp_path, resume=str(weights))


@pytest.mark.parametrize(
    ("resume", "expected"),
    [
        (None, False),
        ("auto", True),
        ("last.pth", True),
        ("last.previous.pth", True),
        ("best.pth", False),
        ("elsewhere/last.pth", False),
    ],
)
def test_a_run_resumes_in_its_own_folder_if_r_names_the_state_there(
    run, resume, expected
):
    named = resume if resume in (None, "auto") else str(run / resume)
    assert resumes_in(run, named) == expected
