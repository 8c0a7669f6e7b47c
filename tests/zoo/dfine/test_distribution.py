import pytest
import torch

from src.zoo.dfine.distribution import (
    box_to_bins,
    distance_to_box,
    expected_distances,
    weighting_sequence,
)

UP = torch.tensor([0.5])
W = {
    4: [
        0,
        0.075990,
        0.157754,
        0.245731,
        0.340393,
        0.442249,
        0.551845,
        0.669770,
        0.796655,
        0.933182,
        1.080083,
        1.238148,
        1.408224,
        1.591224,
        1.788130,
        1.999999,
        4,
    ],
    8: [
        0,
        0.113264,
        0.239356,
        0.379730,
        0.536003,
        0.709976,
        0.903654,
        1.119269,
        1.359305,
        1.626529,
        1.924019,
        2.255203,
        2.623899,
        3.034356,
        3.491301,
        4.000002,
        8,
    ],
}
"""The upper half of the sequence for both published scales."""


def sequence(reg_scale):
    return weighting_sequence(32, UP, torch.tensor([reg_scale]))


@pytest.mark.parametrize("reg_scale", W)
def test_upper_half_of_the_weighting_sequence_is_the_published_one(reg_scale):
    torch.testing.assert_close(
        sequence(reg_scale)[16:], torch.tensor(W[reg_scale]), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("reg_scale", W)
def test_weighting_sequence_is_odd_and_rises(reg_scale):
    weights = sequence(reg_scale)
    assert torch.equal(weights, -weights.flip(0)) and (weights.diff() > 0).all()


def test_weighting_sequence_in_double_precision_agrees_with_single():
    double = weighting_sequence(32, UP.double(), torch.tensor([4.0]).double())
    torch.testing.assert_close(double.float(), sequence(4), rtol=0, atol=2e-6)


@pytest.mark.parametrize("reg_max", [4, 8, 16, 32])
def test_weighting_sequence_has_a_value_for_each_bin(reg_max):
    assert weighting_sequence(reg_max, UP, torch.tensor([4])).shape == (
        reg_max + 1,
    )


def test_sign_of_up_and_scale_does_not_matter():
    assert torch.equal(
        weighting_sequence(32, -UP, torch.tensor([-4])), sequence(4)
    )


def test_expected_distance_is_the_mean_of_the_sequence_under_a_softmax():
    corners, weights = torch.randn(2, 3, 4 * 33), sequence(4)
    expected = torch.zeros(2, 3, 4)
    for edge in range(4):
        p = corners[..., 33 * edge : 33 * edge + 33].softmax(-1)
        expected[..., edge] = (p * weights).sum(-1)
    torch.testing.assert_close(expected_distances(corners, weights), expected)


def test_expected_distance_is_exact_under_autocast():
    corners, weights = 5 * torch.randn(2, 3, 4 * 33), sequence(4)
    expected = expected_distances(corners, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(expected_distances(corners, weights), expected)


def test_equal_logits_leave_a_box_where_it_is():
    reference = torch.tensor([[0.5, 0.5, 0.4, 0.2]])
    distances = expected_distances(torch.zeros(1, 4 * 33), sequence(4))
    torch.testing.assert_close(
        distance_to_box(reference, distances, 4.0), reference
    )


def test_distances_move_edges_as_in_the_published_example():
    box = distance_to_box(
        torch.tensor([0.5, 0.5, 0.4, 0.2]),
        torch.tensor([0.1, -0.2, 0.3, 0.0]),
        4.0,
    )
    torch.testing.assert_close(box, torch.tensor([0.51, 0.505, 0.44, 0.19]))


def test_bins_of_a_box_are_those_of_the_published_example():
    bins = box_to_bins(
        torch.tensor([[0.5, 0.5, 0.4, 0.2]]),
        torch.tensor([[0.28, 0.42, 0.75, 0.58]]),
        sequence(4),
        4.0,
    )
    assert bins.left_bin.tolist() == [[18, 11, 21, 11]]
    torch.testing.assert_close(
        bins.right_weight,
        torch.tensor([[0.4802, 0.4148, 0.5269, 0.4148]]),
        rtol=0,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("distance", "left_bin", "right_weight"),
    [
        (-5.0, 0, 0.0),
        (-4.0, 0, 0.0),
        (-1.0, 6, 0.54515),
        (0.0, 16, 0.0),
        (0.05, 16, 0.65798),
        (3.0, 31, 0.5),
        (4.0, 31, 1.0),
        (9.0, 31, 1.0),
    ],
)
def test_bin_of_a_distance_is_the_published_one(
    distance, left_bin, right_weight
):
    left_edge = (
        0.5 - (distance + 2) * 0.25
    )  # seen from a reference as wide as the image
    bins = box_to_bins(
        torch.tensor([[0.5, 0.5, 1.0, 1.0]]),
        torch.tensor([[left_edge, 0.0, 1.0, 1.0]]),
        sequence(4),
        4.0,
    )
    assert bins.left_bin[0, 0] == left_bin
    assert bins.right_weight[0, 0].item() == pytest.approx(
        right_weight, abs=1e-5
    )


def test_weights_of_both_bins_add_up_to_one():
    references = torch.rand(50, 4) * 0.5 + 0.25
    bins = box_to_bins(references, torch.rand(50, 4), sequence(4), 4.0)
    torch.testing.assert_close(
        bins.left_weight + bins.right_weight, torch.ones(50, 4)
    )


def test_both_bins_together_give_the_distance_back():
    references, weights = (
        torch.rand(50, 4).double() * 0.2 + 0.4,
        sequence(4).double(),
    )
    targets = distance_to_box(
        references, torch.rand(50, 4).double() * 7 - 3.5, 4.0
    )
    boxes = torch.cat(
        [
            targets[:, :2] - targets[:, 2:] / 2,
            targets[:, :2] + targets[:, 2:] / 2,
        ],
        -1,
    )
    bins = box_to_bins(references, boxes, weights, 4.0)
    distances = (
        bins.left_weight * weights[bins.left_bin]
        + bins.right_weight * weights[bins.left_bin + 1]
    )
    torch.testing.assert_close(
        distance_to_box(references, distances, 4.0), targets
    )


def test_no_pairs_have_no_bins():
    bins = box_to_bins(torch.zeros(0, 4), torch.zeros(0, 4), sequence(4), 4.0)
    assert [tuple(part.shape) for part in bins] == [(0, 4)] * 3
