from types import SimpleNamespace

import pytest

from src.solver.stages import TrainingStages


def stages(stop_epoch: int | None) -> TrainingStages:
    return TrainingStages(epochs=10, stop_epoch=stop_epoch, ema_restart_decay=0.999)


def test_stage_two_begins_with_the_stop_epoch():
    assert [stages(3).stage(epoch) for epoch in range(5)] == [1, 1, 1, 2, 2]


def test_there_is_no_stage_two_without_a_stop_epoch():
    assert {stages(None).stage(epoch) for epoch in range(10)} == {1}


def test_the_average_restarts_once():
    assert [epoch for epoch in range(10) if stages(3).restarts_at(epoch)] == [3]


def test_nothing_restarts_when_the_whole_run_is_clean():
    assert not any(stages(0).restarts_at(epoch) for epoch in range(10))


@pytest.mark.parametrize("stop_epoch", [None, 7])
def test_stages_come_from_the_keys_of_the_collate_function(stop_epoch):
    loader = SimpleNamespace(collate_fn=SimpleNamespace(stop_epoch=stop_epoch, ema_restart_decay=0.9998))
    assert TrainingStages.from_loader(loader, 10) == TrainingStages(10, stop_epoch, 0.9998)


def test_a_users_own_collate_function_needs_no_such_keys():
    assert TrainingStages.from_loader(SimpleNamespace(collate_fn=lambda items: items), 10).stop_epoch is None


# ---- early stopping ----


def patient(**settings) -> TrainingStages:
    return TrainingStages(
        **({"epochs": 20, "stop_epoch": 15, "ema_restart_decay": 0.999, "patience": 3} | settings)
    )


def test_without_patience_every_epoch_comes():
    assert [patient(patience=None).next_epoch(epoch, 0) for epoch in range(20)] == list(range(1, 21))


def test_stage_one_goes_on_while_its_best_is_recent():
    assert [patient().next_epoch(epoch, best_epoch=4) for epoch in (4, 5, 6)] == [5, 6, 7]


def test_when_patience_runs_out_the_clean_stage_still_comes():
    assert patient().next_epoch(7, best_epoch=4) == 15


def test_in_the_clean_stage_patience_begins_anew_and_then_ends_the_run():
    assert [patient().next_epoch(epoch, best_epoch=4) for epoch in (15, 16, 17)] == [16, 17, 20]


@pytest.mark.parametrize("stop_epoch", [None, 25])
def test_without_a_clean_stage_patience_ends_the_run(stop_epoch):
    assert patient(stop_epoch=stop_epoch).next_epoch(7, best_epoch=4) == 20


def test_patience_does_not_run_before_the_last_phase_has_begun():
    stages = patient(last_thaw=8)
    assert [stages.next_epoch(epoch, best_epoch=2) for epoch in (7, 8, 9, 10)] == [8, 9, 10, 15]


def test_the_last_epoch_is_the_last_whatever_patience_says():
    assert patient(stop_epoch=None).next_epoch(19, best_epoch=19) == 20
