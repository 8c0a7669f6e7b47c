"""Gradient accumulation gives the step of the whole batch, on one rank and on several."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
)

from src.nn.backbone.hgnetv2 import freeze_batch_norms
from src.nn.detector_distillation import DetectorDistillation
from src.runtime.distributed import rank, world_size
from src.solver.det_engine import windows
from src.solver.numerics import NumericsGuard
from src.solver.phases import Phases
from src.solver.training_step import TrainStep
from tests.fixtures.detector import random_boxes
from tests.fixtures.processes import on_ranks
from tests.fixtures.slow import slow
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED

PROMISED = {
    "DFINETransformer": {"num_denoising": 0},
    "DFINECriterion": {"weight_dict": {"loss_ddf": 0}},
}
"""Without denoising and distillation, whose counts and means belong to a batch."""


@functools.cache
def detector():
    """A small detector whose norms do not depend on the batch, and its loss."""
    torch.manual_seed(0)
    cfg = tiny_config(num_classes=4, **PROMISED)
    model = cfg.model.train()
    freeze_batch_norms(model)
    for parameter in (
        model.decoder.parameters()
    ):  # zero-initialised heads would hide differences
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return model, cfg.criterion.train()


@functools.cache
def sixteen_images():
    """Images with very different numbers of objects, some without any."""
    torch.manual_seed(1)
    counts = [3, 0, 1, 7, 2, 2, 0, 0, 5, 1, 1, 0, 4, 9, 1, 2]
    targets = [
        {
            "labels": torch.randint(4, (count,)),
            "boxes": random_boxes(count),
            "image_path": f"{index}.jpg",
        }
        for index, count in enumerate(counts)
    ]
    return torch.rand(16, 3, 64, 64), targets


def make_step(
    exact: bool = True, criterion=None, *, taught: bool = False
) -> TrainStep:
    model, loss = copy.deepcopy(detector())
    distillation = None
    if taught:
        torch.manual_seed(2)  # the projector is the same on all ranks
        distillation = DetectorDistillation(
            model, teacher=str(TRAINED), min_score=0.02
        )
        distillation.load_teacher()
        distillation.attach()
        distillation.match_classes(["disc", "square", "triangle", "ring"], 4)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1.0
    )  # a step is the gradient
    return TrainStep(
        model=model,
        criterion=criterion or loss,
        optimizer=optimizer,
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.0,
        guard=NumericsGuard(1000),
        exact=exact,
        distillation=distillation,
    )


def window(parts: int) -> list:
    """Return this rank's part of the sixteen images, in the given number of batches."""
    images, targets = sixteen_images()
    share = len(targets) // world_size()
    mine = range(rank() * share, (rank() + 1) * share)
    size = share // parts
    return [
        (
            images[mine[start : start + size]],
            [targets[i] for i in mine[start : start + size]],
        )
        for start in range(0, share, size)
    ]


def gradient(
    parts: int, exact: bool = True, *, taught: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, float], int]:
    """Return the gradients of one step, its losses, and how often gradients were averaged over ranks."""
    step = make_step(exact, taught=taught)
    calls = []
    Phases(step).begin(0)
    if world_size() > 1:
        step.wrapped.register_comm_hook(
            None,
            lambda state, bucket: (
                calls.append(bucket.index()) or allreduce_hook(None, bucket)
            ),
        )
    trained = {
        name: p for name, p in step.model.named_parameters() if p.requires_grad
    }
    if step.distillation:
        own = step.distillation.parameters()
        step.optimizer.add_param_group({"params": own})
        trained |= {f"projector {i}": p for i, p in enumerate(own)}
    before = {name: p.detach().clone() for name, p in trained.items()}
    losses = step(0, window(parts))
    return (
        {name: before[name] - p.detach() for name, p in trained.items()},
        {name: value.item() for name, value in losses.items()},
        len(calls),
    )


def apart(one: dict, two: dict) -> float:
    """Return the largest difference of a gradient, relative to its norm."""
    floor = 1e-3 * max(g.norm() for g in one.values())
    return max(
        (
            (one[name] - two[name]).norm() / one[name].norm().clamp(min=floor)
        ).item()
        for name in one
    )


@pytest.fixture(scope="module")
def whole():
    return gradient(1)


@pytest.mark.parametrize("parts", [2, 4, 16])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(whole, parts):
    gradients, losses, _ = gradient(parts)
    assert apart(whole[0], gradients) <= 1e-4
    assert losses == pytest.approx(whole[1], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("parts", [4, *slow(1)])
def test_a_step_in_parts_on_two_ranks_is_the_step_of_the_whole_batch(
    whole, parts
):
    results = on_ranks(2, lambda: gradient(parts))
    assert all(
        apart(whole[0], gradients) <= 1e-4 for gradients, _, _ in results
    )
    assert sum(
        losses["loss_vfl"] for _, losses, _ in results
    ) / 2 == pytest.approx(whole[1]["loss_vfl"], rel=1e-4)


@pytest.fixture(scope="module")
def whole_taught():
    return gradient(1, taught=True)


def test_a_teacher_adds_its_terms_to_a_step(whole, whole_taught):
    added = whole_taught[1].keys() - whole[1].keys()
    soft = {f"loss_soft_{name}" for name in ("cls", "bbox", "giou", "fgl")}
    assert added == {"loss_distill"} | soft
    assert all(whole_taught[1][name] > 0 for name in added)
    assert any("projector" in name for name in whole_taught[0])


@pytest.mark.parametrize("exact", [True, False])
def test_the_terms_of_a_teacher_in_parts_are_those_of_the_whole_batch(
    whole_taught, exact
):
    gradients, losses, _ = gradient(4, exact, taught=True)
    for name, value in whole_taught[1].items():
        if "distill" in name or "soft" in name:
            assert losses[name] == pytest.approx(value, rel=1e-4)
    if exact:
        assert apart(whole_taught[0], gradients) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_with_a_teacher_on_two_ranks_is_the_step_of_the_whole_batch(
    whole_taught, parts
):
    results = on_ranks(2, lambda: gradient(parts, taught=True))
    assert all(
        apart(whole_taught[0], gradients) <= 1e-4 for gradients, _, _ in results
    )
    for name in ("loss_soft_cls", "loss_soft_fgl", "loss_distill"):
        mean = sum(losses[name] for _, losses, _ in results) / 2
        assert mean == pytest.approx(whole_taught[1][name], rel=1e-4)


def test_ranks_average_gradients_once_a_step_however_many_parts_it_has():
    assert on_ranks(2, lambda: gradient(4)[2]) == on_ranks(
        2, lambda: gradient(1)[2]
    )


def test_parts_by_their_own_counts_are_near_but_not_the_same(whole):
    assert apart(whole[0], gradient(4, exact=False)[0]) > 1e-3


def test_counting_leaves_random_state_and_batch_statistics_unchanged():
    model, criterion = copy.deepcopy(tiny().model.train()), tiny().criterion
    step = TrainStep(
        model=model,
        criterion=criterion,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.0,
        guard=NumericsGuard(1000),
    )
    seen = []
    model.register_forward_hook(
        lambda module, inputs, outputs: seen.append(
            outputs["dn_outputs"][0]["pred_boxes"].detach().clone()
        )
    )
    once = copy.deepcopy(model)
    step(0, window(2))
    assert torch.equal(seen[0], seen[2]) and not torch.equal(
        seen[0], seen[1]
    )  # counted and learned with the same noise
    assert all(
        m.num_batches_tracked == n.num_batches_tracked + 2
        for m, n in zip(model.modules(), once.modules())
        if isinstance(m, torch.nn.BatchNorm2d)
    )


def test_a_loss_that_draws_random_numbers_does_not_change_those_of_the_next_batch():
    model, criterion = copy.deepcopy(tiny().model.train()), tiny().criterion
    step = TrainStep(
        model=model,
        criterion=criterion,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.0,
        guard=NumericsGuard(1000),
        anchoring=lambda: torch.randperm(8).sum() * 0.0,
    )
    seen = []
    model.register_forward_hook(
        lambda module, inputs, outputs: seen.append(
            outputs["dn_outputs"][0]["pred_boxes"].detach().clone()
        )
    )
    step(0, window(2))
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])


@functools.cache
def tiny():
    return tiny_config(num_classes=4)


def test_a_window_with_batches_without_objects_has_all_losses():
    images, targets = sixteen_images()
    empty = [
        {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}
    ] * 2
    model, criterion = copy.deepcopy(tiny().model.train()), tiny().criterion
    step = TrainStep(
        model=model,
        criterion=criterion,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=None,
        clip_max_norm=0.0,
        guard=NumericsGuard(1000),
    )
    losses = step(
        0,
        [
            (images[:2], empty),
            (images[2:4], targets[2:4]),
            (images[4:6], empty),
        ],
    )
    assert losses.keys() == step(1, [(images[:2], targets[:2])]).keys()
    assert all(torch.isfinite(value) for value in losses.values())


def test_a_bad_batch_skips_the_whole_step_and_is_named(caplog):
    step = make_step()
    parts = window(4)
    parts[2] = (torch.full_like(parts[2][0], float("nan")), parts[2][1])
    before = copy.deepcopy(step.model.state_dict())
    assert step(7, parts) is None
    assert all(
        torch.equal(value, before[name])
        for name, value in step.model.state_dict().items()
    )
    assert (
        "step 7 skipped" in caplog.text
        and "images: 8.jpg, 9.jpg, 10.jpg, 11.jpg" in caplog.text
    )


def test_a_criterion_of_a_users_own_needs_no_counts():
    step = make_step(
        criterion=lambda outputs, targets: {
            "loss": outputs["pred_logits"].square().mean()
        }
    )
    assert step(0, window(4)).keys() == {"loss"}


@pytest.mark.parametrize(
    ("batches", "size", "groups"),
    [
        (6, 2, [2, 2, 2]),
        (7, 3, [3, 3, 1]),
        (3, 1, [1, 1, 1]),
        (2, 5, [2]),
        (0, 2, []),
    ],
)
def test_batches_are_grouped_into_steps(batches, size, groups):
    assert [len(group) for group in windows(range(batches), size)] == groups
