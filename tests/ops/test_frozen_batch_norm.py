"""The frozen batch norm agrees with torchvision's and with `nn.BatchNorm2d` in evaluation mode."""

import torch
import torchvision
from torch import nn

from src.ops.batch_norm import FrozenBatchNorm2d


def trained_norm(channels: int = 5) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    norm(torch.randn(8, channels, 4, 4))
    return norm.eval()


def test_values_and_keys_are_those_of_torchvisions_class():
    norm = trained_norm()
    own = FrozenBatchNorm2d(5, eps=1e-3)
    theirs = torchvision.ops.FrozenBatchNorm2d(5, eps=1e-3)
    own.load_state_dict(norm.state_dict())
    theirs.load_state_dict(norm.state_dict())
    assert list(own.state_dict()) == list(theirs.state_dict())
    images = torch.randn(2, 5, 3, 3)
    assert torch.equal(own(images), theirs(images))
    torch.testing.assert_close(own(images), norm(images))


def test_nothing_is_trained_or_updated():
    own = FrozenBatchNorm2d(5).train()
    before = {key: value.clone() for key, value in own.state_dict().items()}
    own(torch.randn(2, 5, 3, 3) + 3)
    assert list(own.parameters()) == []
    for key, value in own.state_dict().items():
        assert torch.equal(value, before[key]), key
