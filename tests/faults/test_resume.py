"""A stopped and resumed run gives the result of an uninterrupted one: F01, F11, F12, F13, F16 and F19."""

import json
import os

import pytest

from src.core.errors import CheckpointError, ConfigError
from src.runtime.files import LOCK
from src.runtime.weight_files import read_tensor_file
from src.solver.saving import Saver
from tests.faults.runs import STEPS, final_state, run, same
from tests.fixtures.commands import read_log
from tests.fixtures.processes import run_forked
from tests.fixtures.slow import slow
from tests.fixtures.tiny import write_tiny_teacher
from tests.fixtures.trained_tiny import DETECTOR_TEACHER, TRAINED


@pytest.fixture(scope="module")
def straight(tiny_data, tmp_path_factory):
    """The final states of uninterrupted runs on one rank and on two."""
    folders = {
        ranks: tmp_path_factory.mktemp(f"straight{ranks}") for ranks in (1, 2)
    }
    for ranks, folder in folders.items():
        assert run(tiny_data, folder, ranks=ranks)
        assert all(record["AP"] > 0.1 for record in read_log(folder)), (
            "nothing is found: scores say nothing"
        )
    return {
        ranks: final_state(folder) for ranks, folder in folders.items()
    }, folders


@pytest.mark.parametrize("step", [3, *slow(1, 2, 4, 5, 6, 7, 8)])
def test_f01_a_run_stopped_after_any_step_ends_with_the_same_state(
    straight, tiny_data, tmp_path, step
):
    assert not run(tiny_data, tmp_path, stop_after=step)
    assert run(tiny_data, tmp_path)
    assert same(final_state(tmp_path), straight[0][1])


@pytest.mark.parametrize("step", [3, *slow(2, 5)])
def test_f01_two_ranks_stopped_after_any_step_end_with_the_same_state(
    straight, tiny_data, tmp_path, step
):
    assert not run(tiny_data, tmp_path, ranks=2, stop_after=step)
    assert run(tiny_data, tmp_path, ranks=2)
    assert same(final_state(tmp_path), straight[0][2])


@pytest.fixture(scope="module")
def distilled(tiny_data, tmp_path_factory):
    """Settings of a distillation, and the final state of an uninterrupted run with it."""
    folder = tmp_path_factory.mktemp("distilled")
    settings = write_tiny_teacher(folder)
    assert run(tiny_data, folder / "run", distillation=settings)
    return settings, final_state(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, *slow(2)])
def test_f01_a_distillation_stopped_in_an_epoch_ends_with_the_same_state(
    distilled, tiny_data, tmp_path, step
):
    settings, straight = distilled
    assert not run(tiny_data, tmp_path, stop_after=step, distillation=settings)
    assert run(tiny_data, tmp_path, distillation=settings)
    assert same(final_state(tmp_path), straight)
    assert straight["/distillation/weight"] == settings["default_weight"]
    assert straight["/distillation/projector/weight"].any()


@pytest.fixture(scope="module")
def taught(tiny_data, tmp_path_factory):
    """Return the final state of an uninterrupted run with a detector as teacher, and its folder."""
    folder = tmp_path_factory.mktemp("taught")
    settings = {"distillation": DETECTOR_TEACHER, "tuning": None}
    assert run(tiny_data, folder, **settings)
    return final_state(folder), folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, *slow(2)])
def test_f01_a_run_with_a_detector_as_teacher_ends_with_the_same_state(
    taught, tiny_data, tmp_path, step
):
    settings = {"distillation": DETECTOR_TEACHER, "tuning": None}
    assert not run(tiny_data, tmp_path, stop_after=step, **settings)
    assert run(tiny_data, tmp_path, **settings)
    assert same(final_state(tmp_path), taught[0])
    assert taught[0]["/distillation/projector/weight"].any()


def test_checkpoints_do_not_contain_the_detector_that_teaches(
    taught, tiny_data
):
    _, folder = taught
    names = set(read_tensor_file(TRAINED)["model"])
    last = read_tensor_file(folder / "last.pth")
    best = read_tensor_file(folder / "best.pth")
    for weights in (last["model"], last["ema"]["module"], best["model"]):
        assert set(weights) == names
    assert set(last["distillation"]["projector"]) == {"weight", "bias"}


def test_the_losses_of_a_detector_as_teacher_are_in_the_log(taught):
    records = read_log(taught[1])
    soft = [f"train_loss_soft_{name}" for name in ("cls", "bbox", "giou")]
    for record in records[:2]:
        assert all(record[name] > 0 for name in soft)
    weights = [record["distillation_decoder_weight"] for record in records]
    assert weights == [0.5, 0.25, 0.0]
    assert not any(name in records[2] for name in soft)
    assert all(record["train_loss_distill"] > 0 for record in records)


@pytest.mark.slow
def test_f01_a_run_with_windows_stopped_on_two_ranks_ends_with_the_same_state(
    straight, tiny_data, tmp_path
):
    windows = {"DINOv3Backbone": {"windows": 2, "window_blocks": [0]}}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run(tiny_data, whole, ranks=2, **windows)
    assert not run(tiny_data, stopped, ranks=2, stop_after=3, **windows)
    assert run(tiny_data, stopped, ranks=2, **windows)
    assert same(final_state(stopped), final_state(whole))
    assert not same(
        final_state(whole), straight[0][2]
    )  # windows have an effect


def test_a_run_that_ends_before_windows_are_trained_is_refused(
    tiny_data, tmp_path
):
    windows = {"windows": 2, "window_blocks": [0], "freeze_backbone_epochs": 3}
    with pytest.raises(ConfigError, match="in the 3 epochs of this run"):
        run(tiny_data, tmp_path, DINOv3Backbone=windows)


def test_a_run_without_distillation_is_not_resumed_with_one(
    tiny_data, tmp_path
):
    assert not run(tiny_data, tmp_path, stop_after=2)
    settings = write_tiny_teacher(tmp_path)
    with pytest.raises(CheckpointError, match="has no state of a distillation"):
        run(tiny_data, tmp_path, distillation=settings, override=True)


@pytest.mark.slow
def test_f01_a_run_stopped_in_its_evaluation_repeats_it_and_ends_with_the_same_state(
    straight, tiny_data, tmp_path
):
    assert not run(tiny_data, tmp_path, stop_after=3, in_evaluation=True)
    assert not (tmp_path / "best.pth").exists()
    assert run(tiny_data, tmp_path)
    assert same(final_state(tmp_path), straight[0][1])


@pytest.mark.slow
def test_f01_a_run_stopped_again_and_again_ends_with_the_same_state(
    straight, tiny_data, tmp_path
):
    for step in range(1, STEPS):
        assert not run(tiny_data, tmp_path, stop_after=step)
    assert run(tiny_data, tmp_path)
    assert same(final_state(tmp_path), straight[0][1])


@pytest.mark.parametrize("workers", [1, *slow(2)])
def test_f11_workers_of_the_loader_change_nothing(
    straight, tiny_data, tmp_path, workers
):
    settings = {"train_dataloader": {"num_workers": workers}}
    assert not run(tiny_data, tmp_path, stop_after=5, **settings)
    assert run(tiny_data, tmp_path)
    assert same(final_state(tmp_path), straight[0][1])


@pytest.mark.slow
def test_f11_another_number_of_ranks_resumes_and_logs_the_changes(
    tiny_data, tmp_path, caplog
):
    assert not run(tiny_data, tmp_path, ranks=2, stop_after=4)
    assert run(tiny_data, tmp_path)
    assert (
        "resuming with 1 rank, the run started with 2: each step has the same images"
        in caplog.text
    )
    assert [record["epoch"] for record in read_log(tmp_path)] == [0, 1, 2]


def test_f11_another_batch_resumes_within_the_epoch_and_logs_the_changes(
    tiny_data, tmp_path, caplog
):
    assert not run(tiny_data, tmp_path, stop_after=4)
    assert run(tiny_data, tmp_path, train_dataloader={"total_batch_size": 2})
    assert (
        "a step now has 4 images, before it had 8: epoch 2 continues with step 3"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr was 0.0002, is 0.5"),
        ({"epochs": 4}, "epochs was 3, is 4"),
        (
            {"HybridEncoder": {"hidden_dim": 64}},
            "HybridEncoder.hidden_dim was 32, is 64",
        ),
        ({"patience": 3}, "patience was not set, is 3"),
        ({"seed": 5}, "seed was 1, is 5"),
    ],
)
def test_f12_a_changed_configuration_is_refused_with_the_keys_that_differ(
    tiny_data, tmp_path, change, expected
):
    assert not run(tiny_data, tmp_path, stop_after=1)
    before = (tmp_path / "last.pth").read_bytes()
    with pytest.raises(
        ConfigError, match="differs from that of the run to resume"
    ) as caught:
        run(tiny_data, tmp_path, **change)
    assert expected in str(caught.value) and "--override" in str(caught.value)
    assert (tmp_path / "last.pth").read_bytes() == before


def test_f12_a_changed_configuration_resumes_on_request(
    tiny_data, tmp_path, caplog
):
    assert not run(tiny_data, tmp_path, stop_after=1)
    assert run(tiny_data, tmp_path, override=True, optimizer={"lr": 0.0005})
    assert (
        "resuming with a changed configuration: optimizer.lr was 0.0002, is 0.0005"
        in caplog.text
    )


@pytest.mark.parametrize(
    "free",
    [
        {
            "print_freq": 2,
            "save_every_steps": 1,
            "memory_trial": True,
            "checkpoint_freq": 1,
            "val_dataloader": {"total_batch_size": 3},
        },
        *slow(
            {"print_freq": 2},
            {"save_every_steps": 1},
            {"memory_trial": True},
            {"checkpoint_freq": 1},
            {"val_dataloader": {"total_batch_size": 3}},
        ),
    ],
)
def test_f12_settings_that_do_not_change_the_result_are_free(
    straight, tiny_data, tmp_path, free
):
    assert not run(tiny_data, tmp_path, stop_after=4)
    assert run(tiny_data, tmp_path, **free)
    assert same(final_state(tmp_path), straight[0][1])


def test_f13_a_complete_run_is_unchanged(straight, tiny_data, caplog):
    folder = straight[1][1]
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.glob("*")
        if path.is_file() and path.name != LOCK
    }
    with caplog.at_level("INFO"):
        assert run(tiny_data, folder)
    assert "this run is complete: epoch 3 of 3" in caplog.text
    assert {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in before
    } == before


def test_f16_a_worse_score_after_resuming_does_not_replace_the_best(
    tiny_data, tmp_path
):
    assert not run(tiny_data, tmp_path, stop_after=4)
    best = (tmp_path / "best.pth").read_bytes()
    assert run(tiny_data, tmp_path, override=True, optimizer={"lr": 0.0})
    scores = [record["best_score"] for record in read_log(tmp_path)]
    assert scores == sorted(scores)
    if scores[-1] == scores[0]:
        assert (tmp_path / "best.pth").read_bytes() == best


def timeless(folder) -> list[dict]:
    """Return the log records without times."""
    keys = ("train_loss", "AP", "train_lr", "epoch", "stage", "n_trainable")
    return [{key: record[key] for key in keys} for record in read_log(folder)]


@pytest.mark.parametrize("ranks", [1, *slow(2)])
def test_f19_the_log_of_a_stopped_run_has_every_epoch_once_with_the_same_losses(
    straight, tiny_data, tmp_path, ranks
):
    assert not run(tiny_data, tmp_path, ranks=ranks, stop_after=5)
    assert run(tiny_data, tmp_path, ranks=ranks)
    assert timeless(tmp_path) == timeless(straight[1][ranks])
    assert (
        json.loads((tmp_path / "log.txt").read_text().splitlines()[0])["epoch"]
        == 0
    )


@pytest.mark.parametrize(
    "saved",
    [*slow(False), True],
    ids=["before its state is saved", "after its state is saved"],
)
def test_f19_the_log_of_a_run_killed_at_the_end_of_an_epoch_has_every_epoch_once(
    straight, tiny_data, tmp_path, saved
):
    def killed() -> None:
        ordinary = Saver.keep
        Saver.keep = lambda *arguments, **options: (
            saved and ordinary(*arguments, **options),
            os._exit(9),
        )
        run(tiny_data, tmp_path / "run")

    assert run_forked(killed, tmp_path).code == 9
    assert run(tiny_data, tmp_path / "run")
    assert timeless(tmp_path / "run") == timeless(straight[1][1])
