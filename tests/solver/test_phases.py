"""Freezing and unfreezing during a run, on one rank and on several."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from src.runtime.distributed import rank
from src.solver.numerics import NumericsGuard
from src.solver.phases import Phases, log_trainable_parameters
from src.solver.training_step import TrainStep
from tests.fixtures.detector import random_targets
from tests.fixtures.processes import on_ranks
from tests.fixtures.tiny import tiny_config


def phased_run(**backbone):
    """A detector whose ViT is frozen in epoch 0; one of two blocks trains from epoch 1, all from epoch 2."""
    torch.manual_seed(0)
    cfg = tiny_config(
        num_classes=4,
        DINOv3Backbone={"unfreeze_plan": [[1, 1], [2, 2]], **backbone},
        ema={"decay": 0.5, "warmups": 0},
    )
    model = cfg.model.train()
    step = TrainStep(
        model=model,
        criterion=cfg.criterion.train(),
        optimizer=cfg.optimizer,
        ema=cfg.ema,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.1,
        guard=NumericsGuard(1000),
    )
    return step, Phases(step)


def take_steps(step, number: int, count: int = 2) -> None:
    for index in range(count):
        torch.manual_seed(100 * number + 10 * index + rank())
        step(
            index,
            [(torch.rand(2, 3, 64, 64), random_targets(2, 1, num_classes=4))],
        )


def moved(before: dict, after: dict) -> set[str]:
    """Return the parts of the ViT whose weights have changed."""
    names = [
        name
        for name in after
        if name.startswith("backbone.vit.")
        and not torch.equal(before[name], after[name])
    ]
    return {
        ".".join(name.split(".")[2:4])
        if "blocks" in name
        else name.split(".")[2]
        for name in names
    }


def weights_by_epoch(**backbone) -> list[dict]:
    step, phases = phased_run(**backbone)
    states = [copy.deepcopy(step.model.state_dict())]
    for epoch in range(3):
        phases.begin(epoch)
        take_steps(step, epoch)
        states.append(copy.deepcopy(step.model.state_dict()))
    return states


EMBEDDING = {"cls_token", "reg_token", "patch_embed"}


@pytest.mark.parametrize("ranks", [1, 2])
def test_in_each_phase_only_what_is_due_moves_and_the_rest_is_bit_identical(
    ranks,
):
    for states in (
        on_ranks(ranks, weights_by_epoch) if ranks > 1 else [weights_by_epoch()]
    ):
        assert [
            moved(before, after) for before, after in zip(states, states[1:])
        ] == [
            set(),
            {"blocks.1", "norm"},
            {"blocks.0", "blocks.1", "norm"} | EMBEDDING,
        ]
        heads = [state["decoder.enc_score_head.weight"] for state in states]
        assert not any(
            torch.equal(before, after)
            for before, after in zip(heads, heads[1:])
        )


def test_ranks_hold_the_same_weights_after_every_phase():
    one, two = on_ranks(2, weights_by_epoch)
    for ours, theirs in zip(one, two):
        assert all(
            torch.equal(ours[name], theirs[name])
            for name in ours
            if "running_" not in name and "num_batches" not in name
        )


def test_with_lora_only_factors_move():
    states = weights_by_epoch(lora_rank=2)
    changed = {
        name
        for name in states[-1]
        if name.startswith("backbone.vit.")
        and not torch.equal(states[0][name], states[-1][name])
    }
    assert changed and all(".lora_" in name for name in changed)


def test_a_phase_that_changes_nothing_is_not_logged():
    _, phases = phased_run()
    assert [phases.begin(epoch) for epoch in (0, 0, 1, 1, 2, 3)] == [
        True,
        False,
        True,
        False,
        True,
        False,
    ]


def wrappers() -> list[bool]:
    step, phases = phased_run()
    seen = []
    for epoch in (0, 0, 1):
        phases.begin(epoch)
        seen.append(step.wrapped)
    return [
        isinstance(seen[0], DistributedDataParallel),
        seen[0] is seen[1],
        seen[1] is seen[2],
    ]


@pytest.mark.slow
def test_several_ranks_get_a_new_wrapper_at_a_phase_and_only_then():
    assert on_ranks(2, wrappers) == [[True, True, False]] * 2


def test_optimizer_and_average_keep_their_state_when_blocks_thaw():
    step, phases = phased_run()
    phases.begin(0)
    take_steps(step, 0)
    head = step.model.decoder.enc_score_head.weight
    before, updates = (
        copy.deepcopy(step.optimizer.state[head]),
        step.ema.updates,
    )
    phases.begin(1)
    assert torch.equal(step.optimizer.state[head]["exp_avg"], before["exp_avg"])
    take_steps(step, 1)
    assert (
        step.optimizer.state[head]["step"] == before["step"] + 2
        and step.ema.updates == updates + 2
    )


def test_the_average_copies_what_is_frozen_and_averages_what_has_thawed():
    step, phases = phased_run()
    phases.begin(0)
    take_steps(step, 0)
    block = "backbone.vit.blocks.1.mlp.fc1.weight"
    assert torch.equal(
        step.ema.module.state_dict()[block], step.model.state_dict()[block]
    )
    phases.begin(1)
    take_steps(step, 1)
    assert not torch.equal(
        step.ema.module.state_dict()[block], step.model.state_dict()[block]
    )


def test_a_model_without_phases_trains_whole():
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    step = TrainStep(
        model=model,
        criterion=None,
        optimizer=torch.optim.SGD(model.parameters()),
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.0,
        guard=NumericsGuard(10),
    )
    assert Phases(step).begin(0) and step.wrapped is model


def test_the_log_has_the_number_of_trainable_parameters_and_their_rates(caplog):
    step, phases = phased_run(unfreeze_lr_factor=0.1)
    phases.begin(0)
    with caplog.at_level("INFO"):
        log_trainable_parameters(
            0,
            step.model,
            step.optimizer,
            [group["lr"] for group in step.optimizer.param_groups],
        )
    assert (
        "epoch 1: 0.11 M of 0.16 M parameters are trainable" in caplog.text
        and "from epoch" not in caplog.text
    )
    caplog.clear()
    phases.begin(1)
    with caplog.at_level("INFO"):
        log_trainable_parameters(
            1,
            step.model,
            step.optimizer,
            [group["lr"] for group in step.optimizer.param_groups],
        )
    assert "epoch 2: 0.12 M of 0.16 M parameters are trainable" in caplog.text
    assert (
        "lr 0.0001" in caplog.text
        and "x 0.1, from epoch 2" in caplog.text
        and "from epoch 3" not in caplog.text
    )
