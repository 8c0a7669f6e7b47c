"""Saving and restoring the state of a run, and the content of best.pth."""

import copy
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from src.core.errors import CheckpointError
from src.optim.ema import ModelEMA
from src.solver.model_selection import BestModel
from src.solver.numerics import NumericsGuard
from src.solver.plan import Progress, TrainingPlan
from src.solver.run_state import RunFacts, RunState, inference_checkpoint, plain
from src.solver.state_schema import check_state

LAST = Path("run/last.pth")
PLAN = TrainingPlan(
    epochs=4, steps_per_epoch=5, window=1, batch_size=8, stop_epoch=3
)
FACTS = RunFacts(
    bit_depth=None,
    seed=7,
    classes=[{"id": 1, "name": "cat"}],
    config_text="epochs: 4\n",
    provenance={"commit": "abc", "licences": []},
    preprocessing=[{"type": "Resize", "size": [64, 64]}],
    input_size=(64, 64),
    identity={},
    batch_size=8,
)


class Data(list):
    """Ten images, of which some may be unreadable."""

    def __init__(self) -> None:
        super().__init__(range(10))
        self.unreadable = []

    def unreadable_images(self):
        return self.unreadable

    def remember_unreadable(self, images):
        self.unreadable = images


def make_state(**changes) -> RunState:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    parts = {
        "model": model,
        "optimizer": torch.optim.AdamW(
            model.parameters(), lr=0.1, weight_decay=0.01
        ),
        "ema": ModelEMA(model, 0.9, 0),
        "scaler": None,
        "guard": NumericsGuard(5),
        "best": BestModel("AP"),
        "train_data": Data(),
    }
    return RunState(**parts | changes)


def train(state: RunState) -> None:
    state.model(torch.rand(4, 3)).sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.model)


@pytest.fixture
def trained() -> RunState:
    state = make_state()
    train(state)
    state.progress = Progress(epoch=1, step=2, total_steps=7)
    state.best.consider(0, {"AP": 0.25}, state.scored.state_dict(), stage=1)
    state.guard.in_epoch, state.first_loss, state.explained = 2, 3.5, True
    state.train_data.unreadable = [4]
    return state


def test_what_is_scored_is_the_ema_or_without_one_the_model():
    state = make_state()
    assert state.scored is state.ema.module
    assert make_state(ema=None, model=state.model).scored is state.model


def test_a_state_has_all_that_a_checkpoint_must_have(trained):
    check_state(LAST, trained.state_dict(FACTS))


def test_a_restored_state_is_the_same(trained):
    saved = copy.deepcopy(trained.state_dict(FACTS))
    restored = make_state()
    restored.load_state_dict(saved, FACTS, LAST)
    again = restored.state_dict(FACTS)
    for key in (
        "progress",
        "guard",
        "first_loss",
        "explained",
        "unreadable",
        "meta",
        "effective_batch_size",
    ):
        assert again[key] == saved[key], key
    assert all(
        torch.equal(value, saved["model"][name])
        for name, value in again["model"].items()
    )
    assert all(
        torch.equal(value, saved["ema"]["module"][name])
        for name, value in again["ema"]["module"].items()
    )
    moments, saved_moments = (
        again["optimizer"]["state"][0],
        saved["optimizer"]["state"][0],
    )
    assert all(
        torch.equal(moments[name], saved_moments[name])
        for name in ("exp_avg", "exp_avg_sq")
    )
    assert (restored.best.score, restored.best.epoch) == (0.25, 0)


def test_two_runs_that_share_a_state_take_the_same_next_step(trained):
    restored = make_state()
    restored.load_state_dict(
        copy.deepcopy(trained.state_dict(FACTS)), FACTS, LAST
    )
    torch.manual_seed(1)
    train(trained)
    torch.manual_seed(1)
    train(restored)
    assert torch.equal(trained.model.weight, restored.model.weight)
    assert torch.equal(trained.ema.module.weight, restored.ema.module.weight)


def test_settings_of_the_optimizer_are_the_configured_ones_and_moments_those_of_the_file(
    trained,
):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=0.5, weight_decay=0.3, betas=(0.8, 0.9)
    )
    restored = make_state(
        model=model, optimizer=optimizer, ema=ModelEMA(model, 0.9, 0)
    )
    restored.load_state_dict(trained.state_dict(FACTS), FACTS, LAST)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["betas"]) == (
        0.5,
        0.3,
        (0.8, 0.9),
    )
    moments = trained.optimizer.state[trained.model.weight]["exp_avg"]
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], moments)


def test_other_groups_of_parameters_are_refused(trained):
    model = nn.Linear(3, 2)
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    restored = make_state(
        model=model,
        optimizer=torch.optim.AdamW(groups),
        ema=ModelEMA(model, 0.9, 0),
    )
    with pytest.raises(
        CheckpointError,
        match=r"run/last.pth was written with other parameter groups",
    ):
        restored.load_state_dict(trained.state_dict(FACTS), FACTS, LAST)


def test_a_state_without_an_ema_is_refused_if_one_is_configured(trained):
    with pytest.raises(
        CheckpointError, match="has no EMA weights, but use_ema is True"
    ):
        make_state().load_state_dict(
            trained.state_dict(FACTS) | {"ema": None}, FACTS, LAST
        )


def test_a_run_with_another_batch_continues_at_the_last_whole_step(trained):
    restored = make_state()
    facts = RunFacts(**vars(FACTS) | {"batch_size": 16})
    restored.load_state_dict(trained.state_dict(FACTS), facts, LAST)
    assert restored.progress == Progress(epoch=1, step=1, total_steps=7)


def test_an_epoch_that_is_closed_is_counted_and_its_score_kept_if_it_is_the_best():
    state = make_state()
    state.progress = Progress(0, 5, 5)
    assert state.close_epoch({"AP": 0.3}, PLAN) and state.progress == Progress(
        1, 0, 5
    )
    assert (
        not state.close_epoch({"AP": 0.2}, PLAN) and state.progress.epoch == 2
    )
    assert (state.best.score, state.best.epoch) == (0.3, 0)


def test_when_patience_runs_out_the_clean_stage_is_announced(caplog):
    state = make_state()
    state.best.score, state.best.epoch, state.progress.epoch = 0.3, 0, 1
    plan = TrainingPlan(**vars(PLAN) | {"patience": 1})
    with caplog.at_level("INFO", "dfine"):
        state.close_epoch({"AP": 0.2}, plan)
    assert state.progress.epoch == 3 and "stage 2 begins early" in caplog.text


def test_with_other_data_the_epoch_begins_again_and_the_best_is_forgotten(
    trained,
):
    trained.distillation = MagicMock()
    trained.restart_epoch()
    trained.distillation.forget_epoch.assert_called_once_with()
    assert trained.progress == Progress(epoch=1, step=0, total_steps=5)
    assert trained.best.epoch is None and trained.meter is None


def test_best_pth_has_weights_classes_score_and_how_images_are_prepared():
    metrics = {"AP": 0.5, "F1_threshold": 0.4, "AP_of_class": {1: 0.5}}
    content = inference_checkpoint(nn.Linear(3, 2), FACTS, 3, metrics, "AP")
    meta = content["meta"]
    assert set(content["model"]) == {"weight", "bias"}
    assert (
        meta["epoch"],
        meta["metric"],
        meta["score"],
        meta["threshold"],
    ) == (
        3,
        "AP",
        0.5,
        0.4,
    )
    assert (meta["classes"], meta["input_size"], meta["commit"]) == (
        FACTS.classes,
        [64, 64],
        "abc",
    )
    assert meta["metrics"] == plain(metrics) and meta["metrics"][
        "AP_of_class"
    ] == {"1": 0.5}
