"""The stack of decoder layers: which layers run, and what each of them gets."""

import copy

import pytest
import torch

from tests.fixtures.detector import WIDTH, feature_maps, small_decoder


def test_up_and_reg_scale_stand_twice_in_the_state_and_share_memory():
    decoder = small_decoder()
    assert (
        decoder.up is decoder.decoder.up
        and decoder.reg_scale is decoder.decoder.reg_scale
    )
    assert (
        not decoder.up.requires_grad
        and not decoder.reg_scale.requires_grad
        and decoder.up.tolist() == [0.5]
    )


def test_all_layers_start_from_equal_weights():
    layers = small_decoder(drawn=False).decoder.layers
    assert all(
        torch.equal(value, layers[0].state_dict()[key])
        for layer in layers
        for key, value in layer.state_dict().items()
    )


def test_evaluation_does_not_run_layers_that_nobody_asks_for():
    decoder, calls = small_decoder(eval_idx=1).eval(), []
    for index, layer in enumerate(decoder.decoder.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    decoder(feature_maps())
    assert calls == [0, 1]


@pytest.mark.parametrize("eval_idx", [0, 1, 2, -1, -3])
def test_evaluation_returns_the_requested_layer(eval_idx):
    decoder, maps = small_decoder(eval_idx=eval_idx), feature_maps()
    layers = decoder.train()(maps)
    expected = [*layers["aux_outputs"], layers][eval_idx]
    for key, value in decoder.eval()(maps).items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize(
    "settings",
    [{"eval_idx": 0, "layer_scale": 2}, {"eval_idx": 1, "layer_scale": 1.5}],
    ids=str,
)
def test_layers_after_the_one_that_is_used_are_wider(settings):
    decoder = small_decoder(**settings)
    wide = round(settings["layer_scale"] * WIDTH)
    widths = [WIDTH if i <= settings["eval_idx"] else wide for i in range(3)]
    assert [
        layer.norm1.normalized_shape[0] for layer in decoder.decoder.layers
    ] == widths
    assert [head.in_features for head in decoder.dec_score_head] == widths
    assert [
        head.layers[0].out_features for head in decoder.dec_bbox_head
    ] == widths


def test_input_of_a_wide_layer_is_stretched_to_the_nearest():
    decoder, seen = small_decoder(eval_idx=0, layer_scale=2).train(), []
    for layer in decoder.decoder.layers[:2]:
        layer.register_forward_hook(
            lambda _, arguments, output: seen.append((arguments[0], output))
        )
    decoder(feature_maps())
    assert torch.equal(seen[1][0], seen[0][1].repeat_interleave(2, -1))


def test_position_code_of_a_query_is_limited():
    decoder, seen = small_decoder().eval(), []
    decoder.query_pos_head.layers[1].bias.data.fill_(1e4)
    decoder.decoder.layers[0].register_forward_pre_hook(
        lambda _, arguments: seen.append(arguments[3])
    )
    decoder(feature_maps())
    assert seen[0].max() == 10


def test_refined_and_initial_position_codes_differ_from_the_second_layer_on():
    maps = feature_maps()
    once = small_decoder(query_position="initial").train()
    again = copy.deepcopy(once)
    again.decoder.refines_position = True
    first, second = once(maps)["aux_outputs"]
    first_again, second_again = again(maps)["aux_outputs"]
    assert torch.equal(first["pred_logits"], first_again["pred_logits"])
    assert not torch.allclose(
        second["pred_logits"], second_again["pred_logits"]
    )
