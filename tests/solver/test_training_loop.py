"""Parts of an epoch, tested with stub objects."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from src.solver import training_loop
from src.solver.plan import Progress
from src.solver.teacher_clock import TeacherClock
from src.solver.training_loop import (
    begin_epoch,
    load_best_weights,
    rehearse,
    report_step,
    take_step,
    train_epoch,
)
from tests.solver.test_run_state import FACTS, PLAN, make_state


@pytest.fixture
def run():
    """A run in its second epoch, whose step, rates and phases only record what they are asked."""
    state = make_state()
    state.progress = Progress(epoch=1, step=0, total_steps=5)
    step = MagicMock(
        criterion=nn.Identity(),
        anchoring=None,
        return_value={"loss": torch.tensor(2.0)},
        teacher_clock=TeacherClock(torch.device("cpu")),
        teacher_seconds=lambda: None,
    )
    return SimpleNamespace(
        state=state,
        plan=PLAN,
        facts=FACTS,
        step=step,
        rates=MagicMock(highest=1e-3),
        phases=MagicMock(begin=MagicMock(return_value=False)),
        settings=SimpleNamespace(grad_accum_steps=2, memory_trial=None),
        device=torch.device("cpu"),
        data=SimpleNamespace(train_loader=MagicMock()),
        model_size=(64, 64),
        num_classes=4,
    )


def test_a_step_is_counted_also_if_it_is_dropped(run):
    assert take_step(run, [], MagicMock()) == {"loss": torch.tensor(2.0)}
    run.step.return_value = None
    assert take_step(run, [], MagicMock()) is None
    assert run.state.progress == Progress(epoch=1, step=2, total_steps=7)
    assert [call.args[0] for call in run.step.call_args_list] == [5, 6]


def test_random_numbers_of_a_step_depend_on_seed_and_step(run):
    drawn = []
    run.step.side_effect = lambda *_: drawn.append(torch.rand(1).item())
    for total_steps in (5, 6, 5):
        run.state.progress.total_steps = total_steps
        take_step(run, [], MagicMock())
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_resumed_epoch_continues_with_its_next_batch_and_its_count_of_skipped_steps(
    run,
):
    run.state.progress.step, run.state.guard.in_epoch = 3, 2
    begin_epoch(run, 1)
    run.data.train_loader.set_epoch.assert_called_once_with(1, 6)
    assert run.state.guard.in_epoch == 2


def test_a_new_epoch_resets_the_count_of_skipped_steps(run):
    run.state.guard.in_epoch = 2
    begin_epoch(run, 1)
    run.data.train_loader.set_epoch.assert_called_once_with(1, 0)
    assert run.state.guard.in_epoch == 0


@pytest.mark.parametrize(
    ("epoch", "step", "loaded"), [(3, 0, True), (3, 1, False), (2, 0, False)]
)
def test_the_best_weights_are_loaded_once_at_the_start_of_stage_two(
    run, monkeypatch, epoch, step, loaded
):
    calls = []
    monkeypatch.setattr(training_loop, "load_best_weights", calls.append)
    run.state.best.stage_one_weights = {"weight": torch.ones(2, 3)}
    run.state.progress = Progress(epoch, step, 0)
    begin_epoch(run, epoch)
    assert bool(calls) == loaded


def test_model_and_ema_begin_stage_two_with_the_best_weights(run, caplog):
    best = {
        name: torch.full_like(value, 7.0)
        for name, value in run.state.model.state_dict().items()
    }
    (
        run.state.best.stage_one_weights,
        run.state.best.epoch,
        run.state.best.score,
    ) = (
        best,
        1,
        0.5,
    )
    with caplog.at_level("INFO", "dfine"):
        load_best_weights(run)
    assert (run.state.model.weight == 7).all() and (
        run.state.ema.module.weight == 7
    ).all()
    assert (
        not run.state.best.stage_one_weights
        and "(epoch 2, AP 0.500)" in caplog.text
    )


def test_the_progress_bar_counts_epochs_from_one_and_continues_with_the_step(
    run, monkeypatch
):
    bars = []
    monkeypatch.setattr(
        training_loop,
        "with_progress",
        lambda batches, *rest: bars.append(rest) or [],
    )
    run.data.classes = FACTS.classes
    run.state.progress.step = 3
    train_epoch(run, MagicMock(), MagicMock(), MagicMock())
    assert bars == [("epoch 2/4", 5, 3)]


def test_loss_and_anchoring_follow_the_epochs_counted_from_zero(run):
    run.step.criterion, run.step.anchoring = MagicMock(), MagicMock()
    begin_epoch(run, 1)
    for part in (run.step.criterion, run.step.anchoring):
        part.set_epoch.assert_called_once_with(1)


@pytest.mark.parametrize(("epoch", "is_final"), [(1, False), (3, True)])
def test_distillation_knows_whether_the_epoch_is_of_the_final_stage(
    run, epoch, is_final
):
    run.state.distillation = MagicMock()
    begin_epoch(run, epoch)
    begin = run.state.distillation.begin_epoch
    begin.assert_called_once_with(final_stage=is_final, progress=epoch / 3)


class SlowTensor:
    """A loss whose reading is counted, because it waits for the device."""

    def __init__(self) -> None:
        self.reads = 0

    def item(self) -> float:
        self.reads += 1
        return 2.0


@pytest.fixture
def reported(run, caplog):
    """Return a function that reports a step, and returns the curves, the lines and the reads of the loss."""

    def report(step, *, is_terminal=False, is_due=False):
        log = MagicMock()
        log.pace.is_due.return_value = is_due
        loss = SlowTensor()
        run.state.progress.step = step
        run.settings.print_freq = 10
        run.plan = SimpleNamespace(epochs=4, steps_per_epoch=20, steps=80)
        meter = SimpleNamespace(seconds=4.0, steps=2, images=16)
        bar = MagicMock(disable=not is_terminal)
        caplog.clear()
        with caplog.at_level("INFO", "dfine"):
            report_step(run, log, {"loss_a": loss}, meter, bar)
        return log.step.call_count, len(caplog.messages), loss.reads

    return report


def test_curves_are_written_and_a_line_is_logged_every_print_freq_steps(
    reported,
):
    assert reported(10) == (1, 1, 1)


def test_a_terminal_shows_its_progress_bar_and_no_lines(reported):
    assert reported(10, is_terminal=True) == (1, 0, 1)
    assert reported(11, is_terminal=True, is_due=True) == (0, 0, 0)


def test_a_line_is_logged_in_between_when_none_was_for_some_time(reported):
    assert reported(11, is_due=True) == (0, 1, 1)


def test_a_step_without_a_line_reads_nothing_from_the_device(reported):
    assert reported(11) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wanted", "tried"), [(None, False), (False, False), (True, True)]
)
def test_memory_is_tried_on_a_cpu_only_on_request(
    run, monkeypatch, wanted, tried
):
    trial = MagicMock()
    monkeypatch.setattr(training_loop, "try_memory", trial)
    run.settings.memory_trial = wanted
    run.data.train_loader.dataset.output_size = (64, 96)
    run.data.train_loader.dataset.boxes_per_image.return_value = torch.tensor(
        [3, 9]
    )
    rehearse(run)
    assert trial.called == tried
    if tried:
        assert (
            trial.call_args.kwargs["objects"],
            trial.call_args.kwargs["last_epoch"],
        ) == (9, 3)
