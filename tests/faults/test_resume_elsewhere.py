"""Files and settings besides `last.pth` that a resumed run needs: best weights, metric, seed, given file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from src.runtime.weight_files import read_tensor_file
from tests.fixtures.commands import read_log, write_tiny_config
from tests.fixtures.processes import Ended
from tests.fixtures.train_here import train_here
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> tuple[Path, Path]:
    """Configuration and output folder of a run of one epoch from trained weights; `resume` adds a second."""
    folder = tmp_path_factory.mktemp("resume_elsewhere")
    config = write_tiny_config(folder, tiny_data, epochs=1, seed=1)
    rates = ["optimizer.lr=1.0e-9", "train_dataloader.collate_fn.stop_epoch=~"]
    assert train_here("-c", config, "-t", TRAINED, "-u", *rates).code == 0
    return config, folder / "run"


@pytest.fixture
def half(trained, tmp_path) -> tuple[Path, Path]:
    """The same with a copy of the output folder."""
    return trained[0], Path(shutil.copytree(trained[1], tmp_path / "run"))


def resume(
    config: Path,
    output: Path,
    *arguments: str | Path,
    updates: list[str] | None = None,
) -> Ended:
    rates = [
        "epochs=2",
        "optimizer.lr=1.0e-9",
        "train_dataloader.collate_fn.stop_epoch=~",
    ]
    command = [
        "-c",
        config,
        f"--output-dir={output}",
        "--override",
        *arguments,
        "-u",
        *rates,
        *(updates or []),
    ]
    return train_here(*command)


def said(ended: Ended) -> str:
    return ended.out + ended.err


def test_best_weights_beside_the_file_are_copied_to_the_new_folder(
    half, tmp_path
):
    config, folder = half
    ended = resume(config, tmp_path / "new", "-r", folder / "last.pth")
    assert ended.code == 0 and "best.pth is copied to" in said(ended)
    assert read_tensor_file(tmp_path / "new/best.pth")["meta"]["epoch"] in (
        0,
        1,
    )


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:1000])],
)
def test_best_weights_that_are_gone_are_replaced_by_those_of_the_next_evaluation(
    half, damage
):
    config, folder = half
    damage(folder / "best.pth")
    ended = resume(config, folder, "-r", "auto")
    assert ended.code == 0 and "the next evaluation counts as the best" in said(
        ended
    ), said(ended)
    assert read_tensor_file(folder / "best.pth")["meta"]["epoch"] == 1
    assert (folder / "best.damaged.pth").exists() == (damage is not Path.unlink)


def test_a_complete_run_without_its_best_weights_is_not_done(half):
    config, folder = half
    assert resume(config, folder, "-r", "auto").code == 0
    (folder / "best.pth").unlink()
    ended = resume(config, folder, "-r", "auto")
    assert (
        ended.code == 4
        and "this run is complete, but the best weights" in ended.err
    )
    assert "--test-only -r" in ended.err


def test_the_score_of_another_metric_is_forgotten(half):
    config, folder = half
    before = read_log(folder)[0]
    assert (
        resume(config, folder, "-r", "auto", updates=["best_metric=F1"]).code
        == 0
    )
    record = read_log(folder)[1]
    assert (record["best_metric"], record["best_score"]) == (
        "F1",
        record["F1"],
    ) and before["AP"] != record["F1"]


def test_a_resumed_run_keeps_its_seed(half):
    config, folder = half
    ended = resume(config, folder, "-r", "auto", "--seed=77")
    assert (
        ended.code == 2
        and "seed was 1, is 77: a resumed run keeps its random seed"
        in ended.err
    )


def test_a_misspelled_file_is_named_and_none_is_taken_in_its_place(half):
    config, folder = half
    shutil.copy(folder / "last.pth", folder / "last.previous.pth")
    ended = resume(config, folder, "-r", folder / "lsat.pth")
    assert (
        ended.code == 4
        and "lsat.pth does not exist" in ended.err
        and "did you mean" in ended.err
    )


def test_a_damaged_copy_gives_way_to_no_file_of_another_run(half, tmp_path):
    config, folder = half
    shutil.copy(folder / "last.pth", folder / "last.previous.pth")
    copy = folder / "backup.pth"
    copy.write_bytes((folder / "last.pth").read_bytes()[:-200])
    ended = resume(config, tmp_path / "new", "-r", copy)
    assert (
        ended.code == 4
        and "backup.pth" in ended.err
        and "previous" not in ended.err
    )


def test_a_state_under_another_name_is_not_the_run_of_its_folder(
    half, tmp_path
):
    config, folder = half
    (tmp_path / "other").mkdir()
    shutil.copy(folder / "last.pth", folder / "other.pth")
    ended = resume(config, folder, "-r", folder / "other.pth")
    assert ended.code == 2 and "holds another run" in ended.err
    ended = resume(config, folder, "--overwrite", "-r", folder / "other.pth")
    assert (
        ended.code == 0
        and (folder / "earlier/1/best.pth").exists()
        and (folder / "other.pth").exists()
    )
    assert (folder / "best.pth").exists()


def test_an_optimizer_state_of_another_shape_is_refused(half):
    from src.runtime.weight_files import write_tensor_file

    config, folder = half
    state = read_tensor_file(folder / "last.pth")
    first = next(iter(state["optimizer"]["state"].values()))
    first["exp_avg"] = first["exp_avg"].new_zeros(7)
    write_tensor_file(folder / "last.pth", state)
    ended = resume(config, folder, "-r", "auto")
    assert ended.code == 4 and "has the shape [7], expected" in ended.err
