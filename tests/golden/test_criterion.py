"""The loss alone, with denoising: values, and gradients at each of its inputs."""

from typing import Any, NamedTuple

import pytest
import torch

from tests.fixtures.golden import (
    coco_config,
    read_arrays,
    read_json,
    relative_error,
)

HEADS = ("main", "aux0", "aux1", "pre", "enc0", "dn0", "dn1", "dn2", "dn_pre")


class Results(NamedTuple):
    """Losses of the criterion on the official inputs."""

    official: dict[str, Any]
    losses: dict[str, float]
    grad_norms: dict[str, float]


@pytest.fixture(scope="module")
def results() -> Results:
    official, arrays = (
        read_json("criterion.json"),
        read_arrays("criterion.inputs.npz"),
    )
    leaves = {
        key: torch.from_numpy(arrays[key]).requires_grad_(True)
        for key in arrays
        if key.split("/")[0] in HEADS
    }
    targets = [
        {
            name: torch.from_numpy(arrays[f"target{i}/{name}"])
            for name in ("boxes", "labels")
        }
        for i in range(len(official["counts"]))
    ]
    positive = [
        torch.from_numpy(arrays[f"dn_positive{i}"]) for i in range(len(targets))
    ]

    def head(name: str, teacher: str | None = None) -> dict[str, torch.Tensor]:
        own = {
            key.split("/")[1]: tensor
            for key, tensor in leaves.items()
            if key.startswith(f"{name}/")
        }
        return own | (
            {
                f"teacher_{part}": leaves[f"{teacher}/pred_{part}"]
                for part in ("corners", "logits")
            }
            if teacher
            else {}
        )

    outputs = head("main") | {
        "aux_outputs": [head("aux0", "main"), head("aux1", "main")],
        "pre_outputs": head("pre"),
        "enc_aux_outputs": [head("enc0")],
        "enc_meta": {"class_agnostic": False},
        "up": torch.from_numpy(arrays["up"]),
        "reg_scale": torch.from_numpy(arrays["reg_scale"]),
        "dn_outputs": [head(f"dn{i}", "dn2") for i in range(3)],
        "dn_pre_outputs": head("dn_pre"),
        "dn_meta": {
            "dn_positive_idx": positive,
            "dn_num_group": official["num_groups"],
            "dn_num_split": [
                leaves["dn0/pred_logits"].shape[1],
                leaves["main/pred_logits"].shape[1],
            ],
        },
    }
    losses = coco_config("l").criterion.train()(outputs, targets)
    sum(losses.values()).backward()
    norms = {
        key: 0.0 if leaf.grad is None else float(leaf.grad.norm())
        for key, leaf in leaves.items()
    }
    return Results(
        official, {name: loss.item() for name, loss in losses.items()}, norms
    )


def test_the_official_losses_are_emitted_and_no_others(results):
    assert set(results.losses) == set(results.official["losses"])


def test_each_loss_is_the_official_one(results):
    wrong = {
        name: (results.losses[name], value)
        for name, value in results.official["losses"].items()
        if relative_error(results.losses[name], value, 1e-3) > 1e-4
    }
    assert not wrong


def test_the_gradient_at_each_input_has_the_official_norm(results):
    wrong = {
        key: (results.grad_norms[key], norm)
        for key, norm in results.official["grad_norms"].items()
        if relative_error(results.grad_norms[key], norm or 0.0, 1e-4) > 1e-3
    }
    assert not wrong
