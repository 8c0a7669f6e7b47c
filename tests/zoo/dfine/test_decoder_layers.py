import pytest
import torch
import torch.nn.functional as F

from src.zoo.dfine.decoder_layers import (
    LQE,
    MLP,
    DecoderLayer,
    Gate,
    RMSNorm,
    SwiGLU,
)
from src.zoo.dfine.deformable_attention import split_heads
from tests.fixtures.vits import randomize

WIDTH, HEADS, SHAPES = 8, 2, [(4, 6), (2, 3)]


@pytest.mark.parametrize(
    ("layers", "widths"),
    [(1, [(3, 5)]), (2, [(3, 7), (7, 5)]), (3, [(3, 7), (7, 7), (7, 5)])],
)
def test_mlp_has_so_many_linear_layers(layers, widths):
    assert [
        (layer.in_features, layer.out_features)
        for layer in MLP(3, 7, 5, layers).layers
    ] == widths


def test_mlp_has_relu_between_its_layers_and_none_at_the_end():
    mlp, x = MLP(3, 7, 5, 3), torch.randn(2, 4, 3)
    torch.testing.assert_close(
        mlp(x), mlp.layers[2](F.relu(mlp.layers[1](F.relu(mlp.layers[0](x)))))
    )


def test_gate_is_the_norm_of_two_gated_streams():
    gate, a, b = (
        randomize(Gate(WIDTH)),
        torch.randn(2, 5, WIDTH),
        torch.randn(2, 5, WIDTH),
    )
    share = torch.sigmoid(gate.gate(torch.cat([a, b], -1)))
    torch.testing.assert_close(
        gate(a, b), gate.norm(share[..., :WIDTH] * a + share[..., WIDTH:] * b)
    )


def test_gate_starts_with_both_streams_half_open():
    gate = Gate(WIDTH)
    assert not gate.gate.weight.any() and not gate.gate.bias.any()


def test_quality_estimator_reads_the_top_probabilities_of_each_edge_and_their_mean():
    lqe, corners = randomize(LQE()), torch.randn(2, 3, 4 * 33)
    statistics = []
    for edge in range(4):
        top = (
            corners[..., 33 * edge : 33 * edge + 33]
            .softmax(-1)
            .sort(-1, descending=True)
            .values[..., :4]
        )
        statistics += [top, top.mean(-1, keepdim=True)]
    torch.testing.assert_close(
        lqe(corners), lqe.reg_conf(torch.cat(statistics, -1))
    )


def test_quality_estimator_starts_without_an_opinion():
    assert not LQE()(torch.randn(2, 3, 4 * 33)).any()


def layer_inputs():
    tokens = torch.randn(2, sum(h * w for h, w in SHAPES), WIDTH)
    return (
        torch.randn(2, 5, WIDTH),
        torch.rand(2, 5, 4) * 0.5 + 0.2,
        split_heads(tokens, HEADS, SHAPES),
        torch.randn(2, 5, WIDTH),
    )


def test_layer_is_self_attention_then_gated_cross_attention_then_feed_forward():
    layer = randomize(DecoderLayer(WIDTH, HEADS, 12, 0.0, "relu", [2, 3]))
    x, reference, values, position = layer_inputs()
    mask = torch.rand(5, 5) < 0.3
    mask.fill_diagonal_(False)
    attended = layer.self_attn(x + position, x + position, x, attn_mask=mask)[0]
    first = layer.norm1(x + attended)
    second = layer.gateway(
        first, layer.cross_attn(first + position, reference, values)
    )
    expected = layer.norm3(
        second + layer.linear2(F.relu(layer.linear1(second)))
    )
    torch.testing.assert_close(
        layer(x, reference, values, position, mask), expected
    )


def test_a_masked_query_does_not_see_another():
    layer = randomize(DecoderLayer(WIDTH, HEADS, 12, 0.0, "relu", [2, 3]))
    x, reference, values, position = layer_inputs()
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[0, 4] = True
    changed = x.clone()
    changed[:, 4] += 1
    before, after = (
        layer(t, reference, values, position, mask)[:, :2] for t in (x, changed)
    )
    assert torch.equal(before[:, 0], after[:, 0]) and not torch.equal(
        before[:, 1], after[:, 1]
    )


def test_feed_forward_sum_is_kept_within_half_precision():
    layer = randomize(DecoderLayer(WIDTH, HEADS, 12, 0.0, "relu", [2, 3]))
    layer.linear2.bias.data.fill_(1e38)
    layer.norm3 = torch.nn.Identity()
    assert layer(*layer_inputs(), None).max() == 65504


def test_layer_has_no_second_norm():
    names = {
        name.split(".")[0]
        for name in DecoderLayer(
            WIDTH, HEADS, 12, 0.0, "relu", [2, 3]
        ).state_dict()
    }
    assert names == {
        "self_attn",
        "norm1",
        "cross_attn",
        "gateway",
        "linear1",
        "linear2",
        "norm3",
    }


@pytest.mark.parametrize("name", ["linear1", "linear2"])
def test_feed_forward_weights_start_xavier_uniform(name):
    weight = getattr(DecoderLayer(64, 2, 128, 0.0, "relu", [2, 3]), name).weight
    bound = (6 / sum(weight.shape)) ** 0.5
    assert (
        weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        and weight.abs().max() <= bound
    )


def test_mlp_has_the_activation_that_is_asked_for():
    mlp, x = MLP(3, 7, 5, 2, "silu"), torch.randn(4, 3)
    expected = mlp.layers[1](F.silu(mlp.layers[0](x)))
    torch.testing.assert_close(mlp(x), expected)


def test_rms_norm_is_that_of_torch_with_a_scale():
    norm, x = randomize(RMSNorm(WIDTH)), torch.randn(2, 5, WIDTH) * 3
    expected = F.rms_norm(x, (WIDTH,), norm.scale, eps=1e-6)
    torch.testing.assert_close(norm(x), expected)


def test_rms_norm_is_computed_in_float32_and_keeps_the_type():
    x = torch.full((1, WIDTH), 300.0, dtype=torch.float16)  # 300² overflows
    norm = RMSNorm(WIDTH).half()
    assert torch.equal(norm(x), torch.ones(1, WIDTH, dtype=torch.float16))


def test_swiglu_multiplies_a_gate_and_a_value():
    part, x = SwiGLU(WIDTH, 6), torch.randn(2, 5, WIDTH)
    gate, value = part.w12(x)[..., :6], part.w12(x)[..., 6:]
    expected = part.w3(gate * torch.sigmoid(gate) * value)
    torch.testing.assert_close(part(x), expected)


def test_layer_of_deimv2_has_root_mean_square_norms_and_swiglu_of_half_width():
    layer = DecoderLayer(
        WIDTH, HEADS, 12, 0.0, "silu", [2, 3], norm="rms", feed_forward="swiglu"
    )
    shapes = {key: list(t.shape) for key, t in layer.state_dict().items()}
    assert shapes["norm1.scale"] == shapes["norm3.scale"] == [WIDTH]
    assert shapes["gateway.norm.scale"] == [WIDTH]
    assert shapes["swish_ffn.w12.weight"] == [12, WIDTH]
    assert shapes["swish_ffn.w3.weight"] == [WIDTH, 6]
    assert not any(key.startswith("linear") for key in shapes)


def test_layer_without_gateway_adds_what_it_gathers():
    layer = randomize(
        DecoderLayer(WIDTH, HEADS, 12, 0.0, "silu", [2, 3], gateway=False)
    )
    x, reference, values, position = layer_inputs()
    attended = layer.self_attn(x + position, x + position, x)[0]
    first = layer.norm1(x + attended)
    gathered = layer.cross_attn(first + position, reference, values)
    second = layer.norm2(first + gathered)
    expected = layer.norm3(
        second + layer.linear2(F.silu(layer.linear1(second)))
    )
    torch.testing.assert_close(
        layer(x, reference, values, position, None), expected
    )
