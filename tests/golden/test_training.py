"""In training mode, without denoising, losses and gradients are the official ones.

Gradients of size N hang on the order in which float32 sums are rounded: see the notes in `data/README.md`.
"""

from typing import Any, NamedTuple

import pytest
import torch

from tests.fixtures.golden import (
    SALTS,
    coco_config,
    read_arrays,
    read_json,
    relative_error,
)
from tests.golden import filler


class Results(NamedTuple):
    """Outputs of one size."""

    official: dict[str, Any]
    losses: dict[str, float]
    grad_norms: dict[str, float | None]


@pytest.fixture(scope="module", params=["n", "l"])
def results(request) -> Results:
    size = request.param
    config = coco_config(size, DFINETransformer={"num_denoising": 0})
    model, criterion = (
        filler.fill(config.model, SALTS[size]).train(),
        config.criterion.train(),
    )
    arrays = read_arrays(f"dfine_{size}.train_targets.npz")
    targets = [
        {
            name: torch.from_numpy(arrays[f"{name}{i}"])
            for name in ("boxes", "labels")
        }
        for i in range(2)
    ]
    losses = criterion(
        model(filler.image(8, 2, 3, 320, 320), targets=targets), targets
    )
    sum(losses.values()).backward()
    norms = {
        name: None if p.grad is None else float(p.grad.norm())
        for name, p in model.named_parameters()
    }
    return Results(
        read_json(f"dfine_{size}.train.json"),
        {name: loss.item() for name, loss in losses.items()},
        norms,
    )


def test_the_official_losses_are_emitted_and_no_others(results):
    assert set(results.losses) == set(results.official["losses"])


def test_total_is_the_official_one(results):
    assert (
        relative_error(
            sum(results.losses.values()), results.official["total"], 1e-3
        )
        <= 1e-4
    )


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
    assert {
        name for name, norm in results.grad_norms.items() if norm is None
    } == {
        k for k, norm in results.official["grad_norms"].items() if norm is None
    }
