import logging

import pytest
import torch

from src.core import CheckpointError, NumericsError, ResourceError
from src.runtime.weight_files import read_tensor_file
from src.solver import checkpoint
from src.solver.checkpoint import CheckpointFolder
from tests.fixtures.states import small_state

state = small_state


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path)


def test_the_last_but_one_stays(folder, tmp_path):
    folder.save_last(state(1))
    folder.save_last(state(2))
    assert [
        read_tensor_file(tmp_path / n)["progress"]["step"]
        for n in ("last.pth", "last.previous.pth")
    ] == [2, 1]


def test_a_damaged_last_gives_way_to_the_one_before_with_a_warning(
    folder, tmp_path, caplog
):
    folder.save_last(state(1))
    folder.save_last(state(2))
    content = bytearray((tmp_path / "last.pth").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "last.pth").write_bytes(content)
    with caplog.at_level(logging.WARNING, "dfine"):
        assert (
            folder.load_last(tmp_path / "last.pth")[0]["progress"]["step"] == 1
        )
    assert (
        "last.pth" in caplog.text
        and "is damaged" in caplog.text
        and "step 1" in caplog.text
    )


def test_two_damaged_files_are_both_named(folder, tmp_path):
    for name in ("last.pth", "last.previous.pth"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError) as error:
        folder.load_last(tmp_path / "last.pth")
    assert "last.pth" in str(error.value) and "last.previous.pth" in str(
        error.value
    )


def test_weights_alone_cannot_be_resumed_from(folder, tmp_path):
    folder.save_best({"model": {"w": torch.ones(1)}, "meta": {}})
    with pytest.raises(
        CheckpointError,
        match="holds weights but no training state; "
        "resume with -r last.pth, or start a new run from its weights with -t",
    ):
        folder.load_last(tmp_path / "best.pth")


def test_numbered_checkpoints_count_epochs_from_one(folder, tmp_path):
    folder.save_numbered(11, {"model": {}})
    assert (tmp_path / "checkpoints/epoch0012.pth").exists()


def test_a_full_disk_is_survived_twice_and_then_ends_the_run(
    folder, monkeypatch, caplog
):
    def full(*_, **__):
        raise ResourceError("disk full writing last.pth")

    monkeypatch.setattr(checkpoint, "write_tensor_file", full)
    with caplog.at_level(logging.WARNING, "dfine"):
        folder.save_last(state(1))
        folder.save_last(state(2))
    assert caplog.text.count("tries again at the next save") == 2
    with pytest.raises(ResourceError, match="given up after 3 attempts"):
        folder.save_last(state(3))


def test_leftovers_of_a_killed_run_are_removed(folder, tmp_path):
    (tmp_path / ".last.pth.123-0a1b2c3d.dfine-tmp").write_bytes(b"half")
    folder.clean_up()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("previous", "advice"),
    [
        (
            1.0,
            "the previous file is valid: resume with -r {}/last.previous.pth",
        ),
        (float("nan"), "start a new run from earlier weights with -t"),
        (None, "start a new run from earlier weights with -t"),
    ],
    ids=["valid", "not finite", "missing"],
)
def test_a_last_that_is_not_finite_names_the_one_before_only_if_it_is_valid(
    folder, tmp_path, previous, advice
):
    values = {"last.previous.pth": previous, "last.pth": float("inf")}
    for name, value in values.items():
        if value is not None:
            content = state() | {"model": {"w": torch.tensor(value)}}
            torch.save(content, tmp_path / name)
    with pytest.raises(NumericsError, match="model.w contains values") as error:
        folder.load_last(tmp_path / "last.pth")
    assert str(error.value).endswith("; " + advice.format(tmp_path))
