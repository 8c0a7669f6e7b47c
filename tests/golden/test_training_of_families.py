"""In training mode, without denoising, losses and gradients of the other families are the official ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from src.core import YAMLConfig, create
from tests.fixtures.golden import (
    ROOT,
    read_arrays,
    read_json,
    relative_error,
)
from tests.golden import filler

PROJECTOR = "encoder.feature_projector.0."
"""Prefix of the official names of the projector."""

DEIMV2_NAMES = (
    ("backbone.vit.", "backbone.dinov3._model."),
    ("backbone.adapter.detail.", "backbone.sta."),
    ("backbone.adapter.", "backbone."),
)
"""Beginnings of our names and of the official ones in DEIMv2-S."""


class Case(NamedTuple):
    """A model and the conditions of its official numbers."""

    config: str
    salt: int
    part: str
    """Part of the official numbers: "early", or "late" with another matching cost."""
    without_normalization: bool = False
    """True if the official backbone takes normalized images."""


CASES = {
    "deim_s": Case("deim/deim_hgnetv2_s_coco.yml", 8, "early"),
    "rtv4_s": Case("rtv4/rtv4_hgnetv2_s_coco.yml", 8, "early"),
    "deimv2_s": Case("deimv2/deimv2_dinov3_s_coco.yml", 15, "early", True),
    "deimv2_s late": Case("deimv2/deimv2_dinov3_s_coco.yml", 15, "late", True),
}


class Results(NamedTuple):
    """Official results and ours."""

    official: dict[str, Any]
    losses: dict[str, float]
    grad_norms: dict[str, float | None]


def official_name(name: str) -> str:
    """Return the official name of a parameter."""
    for ours, theirs in DEIMV2_NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


@torch.no_grad()
def fill(module: nn.Module, salt: int, prefix: str = "") -> None:
    """Fill a module as `filler.fill` does with the official one."""
    for key, tensor in module.state_dict().items():
        is_computed = key.rsplit(".", 1)[-1].startswith(filler.COMPUTED)
        if tensor.is_floating_point() and not is_computed:
            name = official_name(prefix + key)
            array = filler.value(name, tuple(tensor.shape), salt, box_gain=1)
            tensor.copy_(torch.from_numpy(array))


def config_of(case: Case) -> YAMLConfig:
    """Return the published configuration without pretrained weights and denoising."""
    backbone: dict[str, Any] = {"pretrained": False}
    name = "HGNetv2"
    if case.without_normalization:
        name = "DINOv3Backbone"
        backbone |= {"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}
    settings = {name: backbone, "DFINETransformer": {"num_denoising": 0}}
    return YAMLConfig(ROOT / "configs" / case.config, **settings)


def targets_of(name: str) -> list[dict[str, Tensor]]:
    """Return the official targets of two images."""
    arrays = read_arrays(f"{name}.train_targets.npz")
    targets = []
    for i in range(2):
        boxes = torch.from_numpy(arrays[f"boxes{i}"])
        labels = torch.from_numpy(arrays[f"labels{i}"])
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def official_results(name: str, part: str) -> dict[str, Any]:
    """Return the official numbers, without the zeros for heads that have no student's map."""
    official = read_json(f"{name}.train.json")[part]
    for key in list(official["losses"]):
        if key.startswith("loss_distill_"):
            assert official["losses"].pop(key) == 0
    return official


def norms_of(module: nn.Module, prefix: str = "") -> dict[str, float | None]:
    """Return the gradient norm of each parameter by its official name; None without gradient."""
    norms = {}
    for key, parameter in module.named_parameters():
        norm = None if parameter.grad is None else float(parameter.grad.norm())
        norms[official_name(prefix + key)] = norm
    return norms


def compute(name: str, case: Case) -> Results:
    """Run one forward and backward pass."""
    official = official_results(name, case.part)
    config = config_of(case)
    model = config.model.train()
    fill(model, case.salt)
    distillation = None
    if "distillation" in config.yaml_cfg:
        # the official numbers were made with noise instead of a teacher
        settings = config.yaml_cfg["distillation"] | {"depth": 1}
        distillation = create(settings, model=model, load_files=False)
        fill(distillation.projector, case.salt, PROJECTOR)
        noise = filler.image(11, 2, 768, 20, 20) - 0.5
        distillation.teacher = lambda images: noise
        distillation.attach()
    # lengths of the configuration are whole numbers of epochs
    criterion = config.criterion.train()
    criterion.set_epoch(official["epoch"])
    targets = targets_of(name)
    images = filler.image(8, 2, 3, 320, 320)
    losses = criterion(model(images, targets=targets), targets)
    if distillation is not None:
        losses["loss_distill"] = distillation(images)
    sum(losses.values()).backward()
    norms = norms_of(model)
    if distillation is not None:
        norms |= norms_of(distillation.projector, PROJECTOR)
    values = {term: loss.item() for term, loss in losses.items()}
    return Results(official, values, norms)


@pytest.fixture(scope="module", params=CASES)
def results(request) -> Results:
    name = request.param.split()[0]
    return compute(name, CASES[request.param])


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
