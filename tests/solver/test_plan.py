"""The epochs of a run: stages, phases, steps, early stopping, and where a resumed run continues."""

from types import SimpleNamespace

import pytest

from src.core.yaml_config import RunSettings
from src.solver.plan import (
    Progress,
    TrainingPlan,
    continued_progress,
    make_plan,
)


def plan(**settings) -> TrainingPlan:
    return TrainingPlan(
        **{"epochs": 10, "steps_per_epoch": 5, "window": 1, "batch_size": 8}
        | settings
    )


class Loader(list):
    """Ten batches of eight images."""

    total_batch_size = 8

    def __init__(self, **collate) -> None:
        super().__init__(range(10))
        self.collate_fn = SimpleNamespace(**collate)


def test_stage_two_begins_with_the_stop_epoch():
    assert [plan(stop_epoch=3).stage(epoch) for epoch in range(5)] == [
        1,
        1,
        1,
        2,
        2,
    ]


def test_there_is_no_stage_two_without_a_stop_epoch():
    assert {plan().stage(epoch) for epoch in range(10)} == {1}


def test_the_best_weights_are_loaded_once():
    assert [
        epoch for epoch in range(10) if plan(stop_epoch=3).restarts_at(epoch)
    ] == [3]


def test_nothing_restarts_when_the_whole_run_is_clean():
    assert not any(plan(stop_epoch=0).restarts_at(epoch) for epoch in range(10))


@pytest.mark.parametrize("stop_epoch", [None, 7])
def test_stages_come_from_the_keys_of_the_collate_function(stop_epoch):
    made = make_plan(
        RunSettings(epochs=10),
        Loader(stop_epoch=stop_epoch, ema_restart_decay=0.9998),
        {0, 4},
    )
    assert (made.stop_epoch, made.ema_restart_decay, made.thaws) == (
        stop_epoch,
        0.9998,
        {0, 4},
    )


def test_a_users_own_collate_function_needs_no_such_keys():
    assert make_plan(RunSettings(epochs=10), Loader(), {0}).stop_epoch is None


@pytest.mark.parametrize(
    ("accumulated", "steps", "window"),
    [(1, 10, 1), (3, 4, 3), (10, 1, 10), (99, 1, 10)],
)
def test_a_step_takes_as_many_batches_as_are_accumulated_but_not_more_than_an_epoch_has(
    accumulated, steps, window
):
    made = make_plan(
        RunSettings(epochs=2, grad_accum_steps=accumulated), Loader(), {0}
    )
    assert (made.steps_per_epoch, made.window, made.batch_size) == (
        steps,
        window,
        8 * window,
    )
    assert made.steps == 2 * steps


def test_phases_beyond_the_end_of_a_run_are_not_reached():
    made = plan(thaws=frozenset({0, 4, 12, 11}))
    assert made.last_thaw == 4 and made.unreached_thaws == [11, 12]


def test_a_run_is_over_after_its_last_epoch():
    assert [plan().is_over(Progress(epoch)) for epoch in (9, 10, 11)] == [
        False,
        True,
        True,
    ]


def test_an_epoch_that_is_restarted_gives_its_steps_back():
    progress = Progress(epoch=2, step=3, total_steps=13)
    progress.restart_epoch()
    assert progress == Progress(epoch=2, step=0, total_steps=10)


@pytest.mark.parametrize(("batch", "step"), [(8, 6), (16, 3), (4, 12), (10, 4)])
def test_with_another_batch_a_resumed_epoch_continues_at_the_last_whole_step(
    batch, step
):
    assert continued_progress(Progress(1, 6, 16), 8, batch) == Progress(
        1, step, 16
    )


# ---- early stopping ----


def patient(**settings) -> TrainingPlan:
    return plan(**{"epochs": 20, "stop_epoch": 15, "patience": 3} | settings)


def test_without_patience_every_epoch_comes():
    assert [
        patient(patience=None).next_epoch(epoch, 0) for epoch in range(20)
    ] == list(range(1, 21))


def test_stage_one_continues_while_its_best_is_recent():
    assert [
        patient().next_epoch(epoch, best_epoch=4) for epoch in (4, 5, 6)
    ] == [
        5,
        6,
        7,
    ]


def test_when_patience_runs_out_the_clean_stage_still_comes():
    assert patient().next_epoch(7, best_epoch=4) == 15


def test_patience_starts_again_in_stage_2_and_then_ends_the_run():
    assert [
        patient().next_epoch(epoch, best_epoch=4) for epoch in (15, 16, 17)
    ] == [
        16,
        17,
        20,
    ]


@pytest.mark.parametrize("stop_epoch", [None, 25])
def test_without_a_clean_stage_patience_ends_the_run(stop_epoch):
    assert patient(stop_epoch=stop_epoch).next_epoch(7, best_epoch=4) == 20


def test_patience_is_not_counted_before_the_last_phase():
    thawing = patient(thaws=frozenset({0, 8}))
    assert [
        thawing.next_epoch(epoch, best_epoch=2) for epoch in (7, 8, 9, 10)
    ] == [
        8,
        9,
        10,
        15,
    ]


def test_the_last_epoch_is_the_last_whatever_patience_says():
    assert patient(stop_epoch=None).next_epoch(19, best_epoch=19) == 20


@pytest.mark.parametrize(
    ("stop", "epoch", "expected"),
    [(4, 0, 0.0), (4, 2, 0.5), (4, 5, 1.0), (None, 5, 0.5), (20, 5, 0.5)],
)
def test_progress_of_stage_one_ends_with_the_clean_stage_or_the_run(
    stop, epoch, expected
):
    found = plan(epochs=10, stop_epoch=stop).stage_one_progress(epoch)
    assert found == expected


def test_a_run_that_is_clean_from_the_start_has_no_stage_one():
    assert plan(epochs=10, stop_epoch=0).stage_one_progress(0) == 1.0
