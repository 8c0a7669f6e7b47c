"""Save intervals, and the end of a run that was asked to stop."""

import signal

import pytest

from src.core.errors import Preempted, ResourceError
from src.core.yaml_config import RunSettings
from src.runtime.stop import StopRequest
from src.runtime.weight_files import read_tensor_file
from src.solver import saving
from src.solver.checkpoint import CheckpointFolder
from src.solver.plan import Progress
from src.solver.saving import Saver
from tests.solver.test_run_state import FACTS, PLAN, make_state

METRICS = {"AP": 0.5, "F1_threshold": 0.4}


class Asked(StopRequest):
    """A request that SIGTERM has made, or none."""

    def __init__(self, asked: bool) -> None:
        super().__init__()
        self.signal = signal.SIGTERM if asked else None

    @property
    def asked(self) -> bool:
        return self.signal is not None


def make_saver(
    folder, *, asked: bool = False, step: int = 2, **settings
) -> Saver:
    state = make_state()
    state.progress = Progress(epoch=1, step=step, total_steps=5 + step)
    return Saver(
        CheckpointFolder(folder),
        FACTS,
        state,
        PLAN,
        RunSettings(**settings),
        Asked(asked),
    )


@pytest.mark.parametrize(
    ("every", "step", "saved"),
    [(2, 2, True), (2, 3, False), (None, 2, False), (5, 5, False)],
)
def test_within_an_epoch_a_run_is_saved_every_so_many_steps(
    tmp_path, every, step, saved
):
    make_saver(tmp_path, step=step, save_every_steps=every).save_if_due()
    assert (tmp_path / "last.pth").exists() == saved


def test_a_run_is_saved_when_minutes_have_passed(tmp_path, monkeypatch):
    saver = make_saver(tmp_path, save_every_minutes=15.0)
    begin = saving.time.monotonic()
    saver.save_if_due()
    assert not (tmp_path / "last.pth").exists()
    monkeypatch.setattr(saving.time, "monotonic", lambda: begin + 16 * 60)
    saver.save_if_due()
    assert (tmp_path / "last.pth").exists()


@pytest.mark.parametrize(
    ("improved", "files"),
    [(True, {"best.pth", "last.pth"}), (False, {"last.pth"})],
)
def test_after_an_epoch_the_last_state_is_kept_and_the_best_if_it_is_better(
    tmp_path, improved, files
):
    make_saver(tmp_path).keep(1, METRICS, improved=improved)
    assert {path.name for path in tmp_path.glob("*.pth")} == files


def test_a_numbered_checkpoint_is_kept_at_the_configured_interval(tmp_path):
    saver = make_saver(tmp_path, checkpoint_freq=2)
    for epoch in range(4):
        saver.keep(epoch, METRICS, improved=False)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "epoch0002.pth",
        "epoch0004.pth",
    }
    assert (
        read_tensor_file(tmp_path / "checkpoints/epoch0002.pth")["meta"][
            "epoch"
        ]
        == 1
    )


def test_a_run_that_is_asked_to_stop_is_saved_and_reports_its_position(
    tmp_path,
):
    with pytest.raises(
        Preempted,
        match=r"stopped by SIGTERM after step 2 of 5 in epoch 2; the state is saved",
    ):
        make_saver(tmp_path, asked=True).save_and_stop()
    assert (
        read_tensor_file(tmp_path / "last.pth")["progress"]["total_steps"] == 7
    )


def test_a_stop_that_cannot_save_is_an_error(tmp_path, monkeypatch):
    saver = make_saver(tmp_path, asked=True)
    monkeypatch.setattr(saver.checkpoints, "save_last", lambda state: False)
    with pytest.raises(
        ResourceError,
        match=r"the state could not be saved.*there is no .*last.pth",
    ):
        saver.save_and_stop()


def test_an_evaluation_continues_unless_a_stop_was_requested(tmp_path):
    make_saver(tmp_path).stop_evaluation()
    assert not (tmp_path / "last.pth").exists()
    with pytest.raises(Preempted):
        make_saver(tmp_path, asked=True).stop_evaluation()
