"""Batch norm without counting in each layer."""

import copy

import torch
from torch import nn

from src.ops.batch_norm import BatchNorm2d, count_batch


def both(**settings):
    plain = nn.BatchNorm2d(4, **settings)
    ours = BatchNorm2d(4, **settings)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def test_it_computes_and_tracks_what_torch_does_but_the_counter():
    plain, ours = both()
    for training in (True, True, False):
        images = torch.randn(2, 4, 3, 3)
        expected = plain.train(training)(images)
        assert torch.equal(ours.train(training)(images), expected)
    assert torch.equal(ours.running_mean, plain.running_mean)
    assert torch.equal(ours.running_var, plain.running_var)
    assert plain.num_batches_tracked == 2
    assert ours.num_batches_tracked == 0


def test_a_norm_without_momentum_counts_as_torch_does():
    plain, ours = both(momentum=None)
    for _ in range(3):
        images = torch.randn(2, 4, 3, 3)
        assert torch.equal(ours(images), plain(images))
    count_batch(ours)
    assert ours.num_batches_tracked == plain.num_batches_tracked == 3
    assert torch.equal(ours.running_mean, plain.running_mean)


def test_only_norms_in_training_count_a_batch():
    model = nn.Sequential(
        BatchNorm2d(4), BatchNorm2d(4).eval(), nn.BatchNorm2d(4)
    )
    before = copy.deepcopy(model.state_dict())
    count_batch(model)
    after = model.state_dict()
    changed = [key for key in after if not torch.equal(after[key], before[key])]
    assert changed == ["0.num_batches_tracked"]
