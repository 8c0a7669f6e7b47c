"""Twenty failed or interrupted saves: "done" and "saved" are reported only for files on disk (K4)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from src.core.errors import Preempted, ResourceError
from src.runtime.process import explain
from src.runtime.weight_files import read_tensor_file, write_tensor_file
from src.solver import checkpoint
from src.solver.checkpoint import CheckpointFolder
from tests.faults.runs import run
from tests.fixtures.commands import read_log
from tests.fixtures.slow import slow
from tests.fixtures.states import small_state

SHORT = {
    "epochs": 2,
    "grad_accum_steps": 1,
    "train_dataloader": {"collate_fn": {"stop_epoch": None}},
}
"""Twelve steps of one batch, two epochs: best.pth after the first, and last.pth after each."""


@pytest.fixture
def disk(monkeypatch):
    """Return a function that makes writes of a file fail: their numbers from 0 per file; None means all."""
    written: dict[str, int] = {}

    def fail(
        name: str, numbers: tuple[int, ...] | None = None
    ) -> dict[str, int]:
        def write(path: Path, content: Any, **keywords: Any) -> None:
            number = written[path.name] = written.get(path.name, -1) + 1
            if path.name == name and (numbers is None or number in numbers):
                raise ResourceError(
                    f"disk full writing {path}: need 0.2 MB, free 0.0 MB"
                )
            write_tensor_file(path, content, **keywords)

        monkeypatch.setattr(checkpoint, "write_tensor_file", write)
        return written

    return fail


def end(data, folder: Path, **overrides: Any) -> tuple[int, str]:
    try:
        finished = run(data, folder, **{**SHORT, **overrides})
    except BaseException as error:
        return explain(error)
    return (0, "done") if finished else (75, "stopped")


# ---- a run that ends ----


@pytest.mark.parametrize(
    "numbers", [None, *slow((1,), (0, 1))], ids=["all", "the second", "both"]
)
def test_a_run_whose_last_state_is_not_on_disk_does_not_end_with_done(
    tiny_data, tmp_path, disk, numbers
):
    disk("last.pth", numbers)
    code, message = end(tiny_data, tmp_path)
    assert code == 6, message
    assert (
        "training has ended, but some of its results could not be saved: last.pth: disk full"
        in message
    )


@pytest.mark.parametrize("numbers", [(0,)], ids=["the first"])
def test_a_save_that_is_made_up_for_costs_nothing(
    tiny_data, tmp_path, disk, numbers, caplog
):
    disk("last.pth", numbers)
    assert end(tiny_data, tmp_path) == (0, "done")
    assert "training continues and tries again at the next save" in caplog.text
    assert read_tensor_file(tmp_path / "last.pth")["progress"]["epoch"] == 2


def test_a_best_model_that_could_not_be_written_is_written_at_the_next_save(
    tiny_data, tmp_path, disk
):
    written = disk("best.pth", (0,))
    assert end(tiny_data, tmp_path) == (0, "done")
    assert written["best.pth"] >= 1
    assert (
        read_tensor_file(tmp_path / "best.pth")["meta"]["epoch"]
        == read_log(tmp_path)[-1]["best_epoch"]
    )


def test_the_best_model_that_is_written_late_is_that_of_its_epoch(
    tiny_data, tmp_path, disk
):
    """Training changes the weights meanwhile; what is kept for the next attempt must not follow them."""
    straight = tmp_path / "straight"
    assert end(tiny_data, straight) == (0, "done")
    disk("best.pth", (0,))
    assert end(tiny_data, tmp_path / "late") == (0, "done")
    one, two = (
        read_tensor_file(folder / "best.pth")
        for folder in (straight, tmp_path / "late")
    )
    assert one["meta"]["epoch"] == two["meta"]["epoch"]
    assert all(
        torch.equal(value, two["model"][name])
        for name, value in one["model"].items()
    )


def test_a_best_model_that_was_never_written_ends_the_run_with_code_6(
    tiny_data, tmp_path, disk
):
    disk("best.pth")
    code, message = end(tiny_data, tmp_path)
    assert code == 6 and "best.pth" in message
    assert (tmp_path / "last.pth").exists()


def test_a_numbered_checkpoint_that_was_never_written_ends_the_run_with_code_6(
    tiny_data, tmp_path, disk
):
    disk("epoch0001.pth")
    code, message = end(tiny_data, tmp_path, checkpoint_freq=1)
    assert code == 6 and "checkpoints/epoch0001.pth" in message
    assert (tmp_path / "checkpoints/epoch0002.pth").exists()


def test_failures_of_one_file_are_not_forgiven_by_the_success_of_another(
    tiny_data, tmp_path, disk
):
    """Every epoch writes best.pth and checkpoints/ well, and last.pth never."""
    written = disk("last.pth")
    code, message = end(tiny_data, tmp_path, epochs=6, checkpoint_freq=1)
    assert code == 6 and "given up after 3 attempts" in message
    assert written["last.pth"] == 2


# ---- a run that is stopped ----


@pytest.mark.parametrize(
    "step", [3, 8], ids=["before the first save", "after it"]
)
def test_a_stop_that_could_not_save_is_reported_and_ends_with_code_6(
    tiny_data, tmp_path, disk, step
):
    disk("last.pth", None if step == 3 else (1,))
    code, message = end(tiny_data, tmp_path, stop_after=step)
    assert code == 6, message
    assert "but the state could not be saved (last.pth: disk full" in message
    there = (tmp_path / "last.pth").exists()
    assert there == (step == 8)
    assert ("is of an earlier step" if there else "there is no ") in message


def test_a_stop_in_an_evaluation_that_could_not_save_is_reported(
    tiny_data, tmp_path, disk
):
    disk("last.pth")
    code, message = end(tiny_data, tmp_path, stop_after=6, in_evaluation=True)
    assert code == 6 and "but the state could not be saved" in message


@pytest.mark.slow
def test_on_two_ranks_neither_says_that_the_state_is_saved(
    tiny_data, tmp_path, disk
):
    disk("last.pth")
    with pytest.raises(
        AssertionError,
        match="ResourceError: .*but the state could not be saved",
    ) as caught:
        run(tiny_data, tmp_path, ranks=2, stop_after=3, **SHORT)
    assert "the state is saved" not in str(caught.value)


def test_a_stop_that_saved_says_how_to_resume(tiny_data, tmp_path):
    with pytest.raises(
        Preempted, match=r"the state is saved, resume with"
    ) as caught:
        raise _stopped(tiny_data, tmp_path)
    assert explain(caught.value)[0] == 75
    assert (
        read_tensor_file(tmp_path / "last.pth")["progress"]["total_steps"] == 3
    )


def _stopped(data, folder: Path) -> BaseException:
    from tests.faults.runs import RUN, StopAfter, fit
    from tests.fixtures.tiny import merged, tiny_config

    try:
        fit(
            tiny_config(data, folder, **merged(RUN, SHORT)), StopAfter(3, False)
        )
    except BaseException as error:
        return error
    raise AssertionError("the run was not stopped")


# ---- the folder alone ----


STATE = small_state(3)


@pytest.mark.parametrize("place", ["model", "optimizer", "ema", "best"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_with_a_number_that_is_not_finite_does_not_replace_a_good_one(
    tmp_path, place, value
):
    folder = CheckpointFolder(tmp_path)
    folder.save_last(STATE)
    before = (tmp_path / "last.pth").read_bytes()
    bad = {**STATE, place: {"state": [{"exp_avg": torch.tensor([1.0, value])}]}}
    code, message = _outcome(lambda: folder.save_last(bad))
    assert (
        code == 5
        and f"{place}.state.0.exp_avg contains values that are not finite"
        in message
    )
    assert (tmp_path / "last.pth").read_bytes() == before


def test_a_state_that_was_poisoned_on_disk_is_refused_with_the_file_to_take_in_its_place(
    tmp_path,
):
    folder = CheckpointFolder(tmp_path)
    folder.save_last(STATE)
    shutil.copy(tmp_path / "last.pth", tmp_path / "last.previous.pth")
    write_tensor_file(
        tmp_path / "last.pth",
        {
            **STATE,
            "optimizer": {
                "state": {0: {"exp_avg": torch.tensor([float("nan")])}},
                "param_groups": [],
            },
        },
    )
    code, message = _outcome(lambda: folder.load_last(tmp_path / "last.pth"))
    assert (
        code == 5
        and "tensor optimizer.state.0.exp_avg contains values that are not finite"
        in message
    )
    assert f"resume with -r {tmp_path / 'last.previous.pth'}" in message
    folder.load_last(tmp_path / "last.previous.pth")


def _outcome(function) -> tuple[int, str]:
    try:
        function()
    except BaseException as error:
        return explain(error)
    return 0, "done"
