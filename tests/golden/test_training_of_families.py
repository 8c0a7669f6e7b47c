"""In training mode, losses and gradients of DEIM and RT-DETRv4 are the official ones, without denoising."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from src.core import YAMLConfig
from src.nn.distillation import FeatureDistillation
from tests.fixtures.golden import (
    coco_config,
    read_arrays,
    read_json,
    relative_error,
)
from tests.golden import filler

PROJECTOR = "encoder.feature_projector.0."
"""Prefix of the official names of the projector."""

CRITERION = {
    "weight_dict": {"loss_vfl": None, "loss_mal": 1},
    "losses": ["mal", "boxes", "local"],
    "gamma": 1.5,
}
"""What DEIM's criterion changes in D-FINE's."""


class Results(NamedTuple):
    """Official results and ours."""

    official: dict[str, Any]
    losses: dict[str, float]
    grad_norms: dict[str, float | None]


def deim_config(size: str) -> YAMLConfig:
    """Return DEIM of a size that does not freeze norms in D-FINE."""
    decoder = {"num_denoising": 0, "activation": "silu", "mlp_act": "silu"}
    return coco_config(size, DFINETransformer=decoder, DFINECriterion=CRITERION)


def targets_of(name: str) -> list[dict[str, Tensor]]:
    """Return the official targets of two images."""
    arrays = read_arrays(f"{name}.train_targets.npz")
    targets = []
    for i in range(2):
        boxes = torch.from_numpy(arrays[f"boxes{i}"])
        labels = torch.from_numpy(arrays[f"labels{i}"])
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def norms_of(module: nn.Module, prefix: str = "") -> dict[str, float | None]:
    """Return the gradient norm of each parameter; None without gradient."""
    return {
        prefix + name: None if p.grad is None else float(p.grad.norm())
        for name, p in module.named_parameters()
    }


def deim(name: str) -> Results:
    config = deim_config("s")
    model = filler.fill(config.model, salt=8, box_gain=1).train()
    criterion = config.criterion.train()
    targets = targets_of(name)
    criterion.set_epoch(0)
    outputs = model(filler.image(8, 2, 3, 320, 320), targets=targets)
    losses = criterion(outputs, targets)
    sum(losses.values()).backward()
    return Results(
        read_json(f"{name}.train.json")["early"],
        {name: loss.item() for name, loss in losses.items()},
        norms_of(model),
    )


def rtv4(name: str) -> Results:
    """Return the results of a distillation whose teacher gives an image of noise."""
    config = deim_config("s")
    model = filler.fill(config.model, salt=8, box_gain=1).train()
    criterion = config.criterion.train()
    distillation = FeatureDistillation(model, weight=5, depth=1)
    with torch.no_grad():
        for key, tensor in distillation.projector.named_parameters():
            array = filler.value(PROJECTOR + key, tuple(tensor.shape), 8)
            tensor.copy_(torch.from_numpy(array))
    distillation.teacher = lambda images: filler.image(11, 2, 768, 20, 20) - 0.5
    distillation.attach()
    targets = targets_of(name)
    images = filler.image(8, 2, 3, 320, 320)
    losses = criterion(model(images, targets=targets), targets)
    losses["loss_distill"] = distillation(images)
    sum(losses.values()).backward()
    norms = norms_of(model) | norms_of(distillation.projector, PROJECTOR)
    official = read_json(f"{name}.train.json")["early"]
    # the official code lists zeros for heads without a student's map
    for key in list(official["losses"]):
        if key.startswith("loss_distill_"):
            assert official["losses"].pop(key) == 0
    return Results(
        official, {name: loss.item() for name, loss in losses.items()}, norms
    )


CASES = {"deim_s": deim, "rtv4_s": rtv4}


@pytest.fixture(scope="module", params=CASES)
def results(request) -> Results:
    return CASES[request.param](request.param)


def test_the_official_losses_are_emitted_and_no_others(results):
    assert set(results.losses) == set(results.official["losses"])


def test_total_is_the_official_one(results):
    total = sum(results.losses.values())
    assert relative_error(total, results.official["total"], 1e-3) <= 1e-4


def test_each_loss_is_the_official_one(results):
    wrong = {
        name: (results.losses[name], value)
        for name, value in results.official["losses"].items()
        if relative_error(results.losses[name], value, 1e-2) > 1e-3
    }
    assert not wrong


def test_each_parameter_has_a_gradient_of_the_official_norm(results):
    official = results.official["grad_norms"]
    floor = 1e-3 * max(norm for norm in official.values() if norm)
    wrong = {
        name: (results.grad_norms[name], norm)
        for name, norm in official.items()
        if relative_error(results.grad_norms[name] or 0.0, norm or 0.0, floor)
        > 1e-2
    }
    assert not wrong


def test_the_same_parameters_are_left_without_a_gradient(results):
    ours = {name for name, norm in results.grad_norms.items() if norm is None}
    theirs = results.official["grad_norms"].items()
    assert ours == {name for name, norm in theirs if norm is None}
