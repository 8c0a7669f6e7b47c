import torch
from torch import nn

from src.ops.maps import flatten_map


def test_one_image_gives_the_gradient_through_a_batch_norm_that_two_copies_of_it_give():
    torch.manual_seed(0)
    image, slope, norm = (
        torch.randn(1, 4, 3, 5),
        torch.randn(1, 15, 4),
        nn.BatchNorm2d(4).eval(),
    )
    gradients = []
    for copies in (1, 2):
        x = image.repeat(copies, 1, 1, 1).requires_grad_()
        tokens = flatten_map(norm(x)).transpose(1, 2).contiguous()
        gradients.append(torch.autograd.grad((tokens * slope).sum(), x)[0][:1])
    torch.testing.assert_close(*gradients)


def test_a_map_becomes_a_row_of_tokens():
    x = torch.randn(1, 4, 3, 5)
    assert torch.equal(flatten_map(x), x.flatten(2))
