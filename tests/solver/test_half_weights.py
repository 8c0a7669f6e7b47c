"""Weights that are cast together give the numbers of autocast's own casts."""

from __future__ import annotations

import copy
import functools
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from src.runtime.distributed import rank
from src.solver.half_weights import HalfWeights
from src.solver.numerics import NumericsGuard
from src.solver.phases import Phases
from src.solver.training_step import TrainStep
from tests.fixtures.detector import random_boxes
from tests.fixtures.processes import on_ranks
from tests.fixtures.tiny import tiny_config


@functools.cache
def detector(kind: str):
    """A detector without and with low-rank updates or checkpointing, and its loss."""
    torch.manual_seed(0)
    settings = {
        "lora": {"lora_rank": 2},
        "recomputed": {"gradient_checkpointing": True},
    }
    cfg = tiny_config(num_classes=4, DINOv3Backbone=settings.get(kind, {}))
    model = cfg.model.train()
    for parameter in model.parameters():  # zeros would hide differences
        if not parameter.any():
            with torch.no_grad():
                parameter.normal_(std=0.05)
    return model, cfg.criterion.train()


def batch(seed: int):
    torch.manual_seed(seed)
    targets = [
        {
            "labels": torch.randint(4, (count,)),
            "boxes": random_boxes(count),
            "image_path": f"{count}.jpg",
        }
        for count in (3, 0)
    ]
    return torch.rand(2, 3, 64, 64), targets


class OwnCasts(HalfWeights):
    """Leave all casts to autocast."""

    def cast(self, *_, **__):
        return nullcontext()


def train(kind: str, blocks: int, batches: int, own_casts: bool):
    """Return losses and gradients of three steps, and the names of the cast weights of the last one."""
    model, criterion = copy.deepcopy(detector(kind))
    model.backbone.set_trainable_blocks(blocks)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    step = TrainStep(
        model=model,
        criterion=criterion,
        optimizer=optimizer,
        ema=None,
        scaler=None,
        device=torch.device("cpu"),
        amp_dtype=torch.bfloat16,
        clip_max_norm=0.0,
        guard=NumericsGuard(1000),
    )
    if own_casts:
        step.half_weights = OwnCasts(model)
    halves = set()
    model.register_forward_pre_hook(
        lambda *_: halves.update(
            name
            for name, weight in everything(model)
            if weight.dtype == torch.bfloat16
        )
    )
    found = []
    optimizer.register_step_pre_hook(
        lambda *_: found.append(
            {
                n: p.grad.clone()
                for n, p in model.named_parameters()
                if p.grad is not None
            }
        )
    )
    for number in range(3):
        torch.manual_seed(number)
        window = [batch(10 * number + index) for index in range(batches)]
        found.append(step(number, window))
    return found, halves, model


def everything(model):
    for prefix, module in model.named_modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                yield f"{prefix}.{name}", weight


@pytest.mark.parametrize(
    ("kind", "blocks", "batches"),
    [
        ("plain", 2, 1),
        ("plain", 1, 1),
        ("plain", 0, 2),
        ("lora", 1, 1),
        ("recomputed", 2, 1),
    ],
)
def test_losses_gradients_and_weights_are_those_of_autocast(
    kind, blocks, batches
):
    own, _, trained = train(kind, blocks, batches, own_casts=True)
    ours, halves, model = train(kind, blocks, batches, own_casts=False)
    assert len(halves) > 50
    assert len(own) == len(ours) == 6
    for expected, found in zip(own, ours):
        assert list(expected) == list(found)
        for name in expected:
            assert torch.equal(expected[name], found[name]), name
    after = model.state_dict()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(after[name], tensor), name


class Layers(nn.Module):
    """Layers under autocast, in float32, of a subclass, called twice, with a shared weight, never called."""

    def __init__(self) -> None:
        super().__init__()

        class Special(nn.Linear):
            pass

        self.plain = nn.Linear(4, 4)
        self.full = nn.Linear(4, 4)
        self.special = Special(4, 4)
        self.twice = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.twice.weight
        self.unused = nn.Linear(4, 4)
        self.types = {}

    def forward(self, x):
        self.types = {n: w.dtype for n, w in everything(self)}
        x = self.special(self.plain(x)).float()
        with torch.autocast("cpu", enabled=False):
            x = self.full(x)
        return self.twice(self.twice(self.tied(x))).float().square().sum()


def half_and_own(model, x):
    """Return the gradients with weights that are cast together, and with autocast's own casts."""
    weights = HalfWeights(model)
    results = []
    for _ in range(2):
        model.zero_grad()
        with (
            weights.cast("cpu", torch.bfloat16),
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = model(x)
        loss.backward()
        results.insert(0, {n: p.grad for n, p in model.named_parameters()})
    return results


def test_only_plain_layers_that_run_under_autocast_are_cast():
    torch.manual_seed(0)
    model = Layers()
    ours, own = half_and_own(model, torch.randn(3, 4))
    halves = {n for n, kind in model.types.items() if kind == torch.bfloat16}
    assert halves == {
        ".".join((layer, name))
        for layer in ("plain", "twice", "tied")
        for name in ("weight", "bias")
    }
    assert ours["unused.weight"] is None
    for name, expected in own.items():
        if expected is not None:
            assert torch.equal(ours[name], expected), name


class Attention(nn.Module):
    """Attention with further keys and values, which are used in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.types = {}

    def forward(self, x):
        self.types = {n: w.dtype for n, w in everything(self)}
        return self.attention(x, x, x * 2)[0].float().square().sum()


def test_only_matrices_of_attention_and_their_biases_are_cast():
    torch.manual_seed(0)
    model = Attention()
    ours, own = half_and_own(model, torch.randn(3, 1, 4))
    for name, expected in own.items():
        assert torch.equal(ours[name], expected), name
    kinds = {n.rpartition(".")[2]: kind for n, kind in model.types.items()}
    assert kinds.pop("bias_k") == kinds.pop("bias_v") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


def test_layers_of_compiled_modules_are_left_to_autocast():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    model[1].compile(backend="eager")
    kinds = []
    model[1].register_forward_pre_hook(
        lambda *_: kinds.extend(weight.dtype for _, weight in everything(model))
    )
    half_and_own(nn.Sequential(model, Total()), torch.randn(3, 4))
    first = [torch.float32] * 4
    assert kinds == [*first, *[torch.bfloat16] * 2, *[torch.float32] * 2]


class Total(nn.Module):
    def forward(self, x):
        return x.float().sum()


def test_the_parameters_are_back_after_an_error():
    model = Layers()
    weights = HalfWeights(model)
    before = dict(model.named_parameters())
    for wrong in (torch.randn(3, 4), torch.randn(3, 5)):
        try:
            with (
                weights.cast("cpu", torch.bfloat16),
                torch.autocast("cpu", torch.bfloat16),
            ):
                model(wrong)
        except RuntimeError:
            pass
    assert all(after is before[n] for n, after in model.named_parameters())


def gradients_of_ranks(together: bool):
    """Return the gradients of three windows on two ranks, and how many were written into DDP's buckets."""

    def work():
        model, criterion = copy.deepcopy(detector("plain"))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        step = TrainStep(
            model=model,
            criterion=criterion,
            optimizer=optimizer,
            ema=None,
            scaler=None,
            device=torch.device("cpu"),
            amp_dtype=torch.bfloat16,
            clip_max_norm=0.0,
            guard=NumericsGuard(1000),
        )
        phases = Phases(step, find_unused_parameters=not together)
        found = []
        optimizer.register_step_pre_hook(
            lambda *_: found.append(
                {
                    n: p.grad.clone()
                    for n, p in model.named_parameters()
                    if p.grad is not None
                }
            )
        )
        for epoch, number in enumerate((0, 0, 0, 1)):
            phases.begin(epoch // 2)
            window = [
                batch(10 * epoch + rank() + 2 * i) for i in range(1 + number)
            ]
            torch.manual_seed(epoch)
            step(epoch, window)
        return found, step.writes_buckets

    return on_ranks(2, work)


@pytest.mark.slow
def test_several_ranks_get_the_gradients_of_ddp():
    plain, together = gradients_of_ranks(False), gradients_of_ranks(True)
    for (expected, without), (found, with_buckets) in zip(plain, together):
        assert with_buckets and not without
        assert len(found) == len(expected) == 4
        for there, here in zip(expected, found):
            for name, gradient in there.items():
                assert torch.equal(here[name], gradient), name
