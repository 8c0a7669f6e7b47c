import pytest
import torch

from src.zoo.dfine.query_selection import (
    gather_tokens,
    make_anchors,
    select_tokens,
)

CPU = torch.device("cpu")
THREE_LEVELS = ((80, 80), (40, 40), (20, 20))
TWO_LEVELS = ((40, 40), (20, 20))


@pytest.mark.parametrize(
    ("shapes", "index", "values"),
    [
        (TWO_LEVELS, 0, (-4.369448, -4.369448, -2.944439, -2.944439)),
        (TWO_LEVELS, 1600, (-3.663562, -3.663562, -2.197225, -2.197225)),
        (THREE_LEVELS, 0, (torch.inf,) * 4),
        (THREE_LEVELS, 81, (-3.957633, -3.957633, -2.944439, -2.944439)),
        (THREE_LEVELS, 8399, (3.663563, 3.663563, -1.386294, -1.386294)),
    ],
)
def test_anchors_at_640_pixels_are_the_published_ones(shapes, index, values):
    anchors, _ = make_anchors(shapes, 0.01, CPU)
    torch.testing.assert_close(
        anchors[0, index], torch.tensor(values), rtol=0, atol=2e-6
    )


@pytest.mark.parametrize(
    ("shapes", "total", "invalid"),
    [(THREE_LEVELS, 8400, 316), (TWO_LEVELS, 2000, 0)],
)
def test_anchors_at_the_border_are_not_used(shapes, total, invalid):
    anchors, valid = make_anchors(shapes, 0.01, CPU)
    assert (anchors.shape, valid.shape, int((~valid).sum())) == (
        (1, total, 4),
        (1, total, 1),
        invalid,
    )
    assert torch.equal(torch.isinf(anchors).all(-1, keepdim=True), ~valid)


def test_anchors_of_a_map_that_is_not_square_are_in_row_major_order():
    anchors, _ = make_anchors(((2, 4),), 0.0, CPU)
    centres = anchors.sigmoid()[0, :, :2]
    expected = [
        [(x + 0.5) / 4, (y + 0.5) / 2] for y in range(2) for x in range(4)
    ]
    torch.testing.assert_close(centres, torch.tensor(expected))


def test_anchors_double_with_each_level():
    anchors, _ = make_anchors(((2, 2), (1, 1)), 0.0, CPU)
    torch.testing.assert_close(
        anchors.sigmoid()[0, :, 2:],
        torch.tensor([[0.05, 0.05]] * 4 + [[0.1, 0.1]]),
    )


def test_anchors_made_during_inference_can_be_trained_with():
    with torch.inference_mode():
        anchors, _ = make_anchors(((3, 5),), 0.01, CPU)
    assert not anchors.is_inference()


@pytest.mark.parametrize("count", [1, 4, 7])
def test_tokens_are_ranked_by_their_best_class(count):
    logits = torch.randn(3, 7, 4)
    expected = logits.max(-1).values.argsort(-1, descending=True)[:, :count]
    assert torch.equal(select_tokens(logits, count, "default"), expected)


def test_one_to_many_ranks_pairs_of_token_and_class():
    logits = torch.tensor([[[5.0, 4.0], [1.0, 3.0], [0.0, 2.0]]])
    assert select_tokens(logits, 3, "one2many").tolist() == [[0, 0, 1]]


def test_agnostic_ranks_by_a_single_score():
    assert select_tokens(
        torch.tensor([[[1.0], [3.0], [2.0]]]), 2, "agnostic"
    ).tolist() == [[1, 2]]


@pytest.mark.parametrize("method", ["default", "one2many", "agnostic"])
def test_no_more_tokens_are_taken_than_there_are(method):
    assert select_tokens(
        torch.randn(2, 6, 1 if method == "agnostic" else 3), 300, method
    ).shape == (2, 6)


def test_gathered_tokens_are_those_of_the_indices():
    tokens, indices = torch.randn(2, 5, 3), torch.tensor([[4, 0], [1, 1]])
    assert torch.equal(
        gather_tokens(tokens, indices),
        torch.stack([tokens[0, [4, 0]], tokens[1, [1, 1]]]),
    )
