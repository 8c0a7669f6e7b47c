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
