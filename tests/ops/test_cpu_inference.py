"""When code takes the path for inference on a CPU."""

import torch

from src.ops.cpu_inference import is_cpu_inference


def test_tensors_in_float32_without_gradients_take_the_path():
    with torch.no_grad():
        assert is_cpu_inference(torch.ones(2))
    with torch.inference_mode():
        assert is_cpu_inference(torch.ones(2))


def test_gradients_other_types_and_other_devices_do_not():
    assert not is_cpu_inference(torch.ones(2))
    with torch.no_grad():
        assert not is_cpu_inference(torch.ones(2, dtype=torch.bfloat16))
        assert not is_cpu_inference(torch.ones(2, device="meta"))


@torch.no_grad()
def test_autocast_does_not():
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_cpu_inference(torch.ones(2))


class Sign(torch.nn.Module):
    """Returns 1 on the path, else -1."""

    def forward(self, x):
        return torch.ones(1) if is_cpu_inference(x) else -torch.ones(1)


@torch.no_grad()
def test_traced_and_exported_models_do_not():
    x = torch.ones(2)
    assert Sign()(x) == 1
    assert torch.jit.trace(Sign(), x, check_trace=False)(x) == -1
    for strict in (False, True):
        exported = torch.export.export(Sign(), (x,), strict=strict)
        assert exported.module()(x) == -1
