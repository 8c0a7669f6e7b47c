"""Codes of rotary positions that are kept for each image size."""

import copy

import pytest
import torch

from src.nn.backbone import cached_rope
from tests.fixtures.vits import PLAIN, small_backbone


@pytest.fixture
def rope():
    """RoPE of a small ViT, in training mode."""
    return small_backbone(PLAIN).vit.rope.train()


def test_codes_are_those_of_timm(rope):
    for shape in ((4, 4), (2, 6)):
        assert torch.equal(rope.get_embed(shape), rope.rope.get_embed(shape))


def test_codes_of_a_size_are_computed_once(rope):
    first = rope.get_embed((4, 4))
    assert rope.get_embed((4, 4)) is first
    assert rope.get_embed((4, 2)).shape[0] == 8


def test_codes_made_in_an_evaluation_serve_training(rope):
    with torch.inference_mode():
        rope.get_embed((4, 4))
    codes = rope.get_embed((4, 4))
    weight = torch.ones_like(codes, requires_grad=True)
    (codes * weight).sum().backward()
    assert torch.equal(weight.grad, codes)


def test_random_codes_differ_from_pass_to_pass_in_training_alone():
    rope = small_backbone(PLAIN, rope_rescale_coords=2.0).vit.rope.train()
    assert not torch.equal(rope.get_embed((4, 4)), rope.get_embed((4, 4)))
    assert rope.eval().get_embed((4, 4)) is rope.get_embed((4, 4))


def test_codes_follow_the_model_to_another_type(rope):
    rope.get_embed((4, 4))
    moved = copy.deepcopy(rope).double()
    assert moved.get_embed((4, 4)).dtype == moved.rope.periods.dtype


def test_the_number_of_kept_sizes_is_limited(rope, monkeypatch):
    monkeypatch.setattr(cached_rope, "MAX_SIZES", 2)
    for width in range(2, 7):
        rope.get_embed((2, width))
    assert len(rope._codes) <= 2


def test_the_state_has_no_codes(rope):
    rope.get_embed((4, 4))
    assert not rope.state_dict()


def stored_rope():
    return small_backbone(PLAIN, rope_periods="stored").vit.rope.eval()


def test_stored_periods_are_part_of_the_state():
    rope = stored_rope()
    assert list(rope.state_dict()) == ["periods"]


def test_loaded_periods_decide_even_after_codes_were_computed():
    rope = stored_rope()
    before = rope.get_embed((4, 4)).clone()
    periods = rope.periods * 1.5
    rope.load_state_dict({"periods": periods})
    assert torch.equal(rope.rope.periods, periods)
    assert not torch.equal(rope.get_embed((4, 4)), before)


def test_a_copy_has_periods_of_its_own():
    rope = stored_rope()
    copied = copy.deepcopy(rope).float()
    copied.load_state_dict({"periods": rope.periods * 2})
    assert torch.equal(copied.rope.periods, rope.periods * 2)
    assert torch.equal(rope.rope.periods, rope.periods)
