"""Linear layers and 1x1 convolutions in oneDNN."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from src.ops import onednn


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def preferred(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: True)


@pytest.fixture
def not_preferred(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: False)


def operations(function):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    return {event.key for event in profiler.key_averages()}


def used_onednn(function):
    return "aten::mkldnn_convolution" in operations(function)


def layers():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(64, 96, 1),
        nn.Flatten(2),
        nn.Unflatten(2, (16, 16)),
        nn.Conv2d(96, 64, 1, bias=False),
    )


def outputs_and_gradients(model, x):
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y, x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.usefixtures("preferred")
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients_are_those_of_torch(bias):
    torch.manual_seed(0)
    plain = nn.Linear(64, 96, bias)
    ours = copy.deepcopy(plain)
    onednn.use_onednn(ours)
    x = torch.randn(2, 300, 64)
    assert used_onednn(lambda: ours(x))
    expected = outputs_and_gradients(plain, x)
    for found, want in zip(outputs_and_gradients(ours, x), expected):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("preferred")
def test_pointwise_convolutions_and_their_gradients_are_those_of_torch():
    plain = layers()
    ours = copy.deepcopy(plain)
    onednn.use_onednn(ours)
    x = torch.randn(2, 64, 16, 16)
    assert used_onednn(lambda: ours(x))
    expected = outputs_and_gradients(plain, x)
    for found, want in zip(outputs_and_gradients(ours, x), expected):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("preferred")
def test_a_column_of_a_larger_tensor_is_a_valid_input():
    x = torch.randn(2, 600, 128)[:, ::2, :64]
    weight = torch.randn(64, 64)
    expected = F.linear(x, weight)
    found = onednn.linear(x, weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("preferred")
@pytest.mark.parametrize(
    ("rows", "channels"),
    [(onednn.FEWEST_ROWS - 1, 64), (600, onednn.FEWEST_CHANNELS - 1)],
)
def test_small_layers_stay_with_torch(rows, channels):
    layer = onednn.Linear(channels, 64)
    x = torch.randn(rows, channels)
    assert not used_onednn(lambda: layer(x))
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.usefixtures("not_preferred")
def test_other_processors_run_what_torch_runs():
    layer = onednn.Linear(64, 64)
    convolution = onednn.PointwiseConv2d(64, 64, 1)
    x = torch.randn(600, 64)
    image = torch.randn(2, 64, 8, 8)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    expected = F.conv2d(image, convolution.weight, convolution.bias)
    assert torch.equal(convolution(image), expected)
    assert not used_onednn(lambda: layer(x))
    assert not used_onednn(lambda: convolution(image))


@pytest.mark.usefixtures("preferred")
def test_autocast_and_traces_keep_the_operations_of_torch():
    layer = onednn.Linear(64, 64)
    x = torch.randn(600, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert not onednn.takes(x)
    graph = torch.jit.trace(layer, x, check_trace=False).inlined_graph
    assert "aten::linear" in str(graph)
    assert "convolution" not in str(graph)


def test_classes_change_and_parameters_stay():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(4, 4),
            "pointwise": nn.Conv2d(4, 4, 1),
            "strided": nn.Conv2d(4, 4, 1, 2),
            "grouped": nn.Conv2d(4, 4, 1, groups=2),
            "spatial": nn.Conv2d(4, 4, 3, padding=1),
            "heads": nn.MultiheadAttention(4, 2),
        }
    )
    before = {name: id(value) for name, value in model.named_parameters()}
    onednn.use_onednn(model)
    after = {name: id(value) for name, value in model.named_parameters()}
    assert after == before
    changed = {
        name
        for name in model
        if type(model[name]).__module__ == onednn.__name__
    }
    assert changed == {"linear", "pointwise"}
    assert type(model["heads"].out_proj).__module__.startswith("torch.")


@pytest.mark.parametrize(
    ("processor", "capability", "expected"),
    [
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AVX512", True),
        ("AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "AVX2", False),
        (
            "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel",
            "AVX512",
            False,
        ),
    ],
)
def test_only_amd_with_avx512_prefers_onednn(
    monkeypatch, tmp_path, processor, capability, expected
):
    listing = tmp_path / "cpuinfo"
    monkeypatch.setattr(onednn, "Path", lambda _: listing)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.backends.cpu, "get_cpu_capability", lambda: capability
    )
    by_name = onednn.is_faster.__wrapped__
    monkeypatch.setattr(onednn.platform, "processor", lambda: processor)
    assert by_name() == expected
    monkeypatch.setattr(onednn.platform, "processor", lambda: "x86_64")
    assert not by_name()
    listing.write_text(f"vendor_id\t: {processor.split()[-1]}\n")
    assert by_name() == expected
