"""Divisors of the loss terms: sums over parts of a batch."""

import pytest
import torch

from src.zoo.dfine.normalizers import Normalizers, all_rank_normalizers
from tests.fixtures.detector import (
    small_criterion,
    training_outputs,
)


def cut(outputs, images):
    """Return the part of a decoder's outputs, without denoising, that belongs to some images."""

    def part(value):
        if isinstance(value, list):
            return [part(item) for item in value]
        if isinstance(value, dict):
            return {key: part(item) for key, item in value.items()}
        return (
            value[images]
            if isinstance(value, torch.Tensor) and value.ndim > 1
            else value
        )

    return part(outputs)


@pytest.fixture(scope="module")
def halves():
    """Losses of a batch of four and of its halves, given the counts of the whole."""
    torch.manual_seed(0)
    criterion = small_criterion()
    outputs, targets = training_outputs(3, 0, 1, 4, denoise=False)
    counts = [
        criterion.count(cut(outputs, images), targets[images])
        for images in (slice(0, 2), slice(2, 4))
    ]
    normalizers = Normalizers(
        float(sum(c[0] for c in counts)),
        float(sum(c[1] for c in counts)),
        share=0.5,
    )
    parts = [
        criterion(cut(outputs, images), targets[images], normalizers)
        for images in (slice(0, 2), slice(2, 4))
    ]
    return (
        criterion(outputs, targets),
        parts,
        counts,
        criterion.count(outputs, targets),
    )


@pytest.mark.parametrize(
    "term", ["loss_vfl", "loss_bbox", "loss_giou", "loss_fgl"]
)
def test_terms_of_two_halves_add_up_to_those_of_the_batch(term, halves):
    whole, (first, second), _, _ = halves
    names = [name for name in whole if name.startswith(term)]
    assert len(names) >= 3
    for name in names:
        torch.testing.assert_close(
            first[name] + second[name], whole[name], rtol=1e-5, atol=1e-6
        )


def test_counts_of_two_halves_add_up_to_those_of_the_batch(halves):
    _, _, counts, whole = halves
    assert (
        whole == (counts[0][0] + counts[1][0], counts[0][1] + counts[1][1])
        and whole[0] == 8
    )


def test_distillation_of_a_part_counts_by_its_share():
    outputs, targets = training_outputs(3, 1, denoise=False)
    counts = small_criterion().count(outputs, targets)
    whole, quarter = (
        small_criterion()(
            outputs, targets, Normalizers(*map(float, counts), share=share)
        )
        for share in (1.0, 0.25)
    )
    torch.testing.assert_close(
        quarter["loss_ddf_aux_0"], 0.25 * whole["loss_ddf_aux_0"]
    )


def test_normalizers_are_those_of_the_batch_if_none_are_given():
    outputs, targets = training_outputs(3, 1, denoise=False)
    given = Normalizers(*map(float, small_criterion().count(outputs, targets)))
    ours, expected = (
        small_criterion()(outputs, targets),
        small_criterion()(outputs, targets, given),
    )
    assert all(
        torch.equal(ours[name], value) for name, value in expected.items()
    )


@pytest.mark.parametrize(
    ("counts", "expected"), [((0, 0), (1.0, 1.0)), ((5, 9), (5.0, 9.0))]
)
def test_normalizers_of_one_rank_are_its_counts_but_at_least_one(
    counts, expected
):
    assert all_rank_normalizers(*counts, torch.device("cpu"))[:2] == expected
