"""Batch norm over ranks computes what a single process computes for the images of all ranks."""

import copy

import pytest
import torch
from torch import nn

from src.ops.batch_norm import BatchNorm2d
from src.runtime.distributed import rank
from src.runtime.sync_batch_norm import SyncBatchNorm2d, synchronize_batch_norms
from tests.fixtures.processes import on_ranks

SHARES = (2, 3)
"""Images of each rank; they differ, as in the last batch of an epoch."""


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(sum(SHARES), 4, 5, 3, generator=generator) * 3 + 7


def norm_with_parameters() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0, 3.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, 2.0, -1.0]))
    return norm


def trained(norm: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return output, gradients and running statistics of a training step."""
    x = x.clone().requires_grad_()
    out = norm(x)
    slopes = torch.linspace(-1, 1, out[0].numel()).view(out.shape[1:])
    (out.square() * slopes).sum().backward()
    return {
        "out": out.detach(),
        "x": x.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
    }


@pytest.fixture(scope="module")
def ranks():
    def work():
        part = images().split(SHARES)[rank()]
        return trained(synchronize_batch_norms(norm_with_parameters()), part)

    return on_ranks(2, work)


def test_outputs_and_gradients_are_those_of_one_process(ranks):
    whole = trained(norm_with_parameters(), images())
    for key in ("out", "x"):
        joined = torch.cat([part[key] for part in ranks])
        torch.testing.assert_close(joined, whole[key], rtol=1e-4, atol=1e-4)
    for key in ("weight", "bias"):
        total = ranks[0][key] + ranks[1][key]  # DDP averages these
        torch.testing.assert_close(total, whole[key], rtol=1e-4, atol=1e-3)


def test_running_statistics_are_those_of_one_process_on_every_rank(ranks):
    whole = trained(norm_with_parameters(), images())
    for part in ranks:
        for key in ("mean", "var"):
            torch.testing.assert_close(part[key], whole[key])


def test_half_precision_keeps_statistics_in_float32():
    def work():
        norm = synchronize_batch_norms(norm_with_parameters())
        part = images().split(SHARES)[rank()].bfloat16()
        return norm(part).dtype, norm.running_mean

    (dtype, mean), _ = on_ranks(2, work)
    assert dtype == torch.bfloat16
    whole = trained(norm_with_parameters(), images().bfloat16().float())
    torch.testing.assert_close(mean, whole["mean"])


def test_in_a_single_process_it_is_plain_batch_norm():
    plain = trained(norm_with_parameters(), images())
    synced = trained(synchronize_batch_norms(norm_with_parameters()), images())
    for key, value in plain.items():
        assert torch.equal(value, synced[key])


def test_evaluation_needs_no_other_rank():
    norm = norm_with_parameters().eval()
    expected = norm(images())

    def work():
        if rank() == 0:
            return None
        return synchronize_batch_norms(norm)(images())

    assert torch.equal(on_ranks(2, work)[1], expected)


def test_only_batch_norms_that_learn_are_replaced_and_keep_their_tensors():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(BatchNorm2d(4))
    )
    parameters = list(model.parameters())
    before = copy.deepcopy(model.state_dict())
    synced = synchronize_batch_norms(model)
    assert isinstance(synced[1], SyncBatchNorm2d)
    assert isinstance(synced[2][0], SyncBatchNorm2d)
    after = synced.state_dict()
    assert list(after) == list(before)
    assert all(map(torch.equal, after.values(), before.values()))
    assert all(a is b for a, b in zip(synced.parameters(), parameters))
