"""bf16 or fp16, by device."""

import pytest
import torch

from src.runtime.precision import autocast_dtype


@pytest.mark.parametrize(
    ("is_native", "expected"), [(True, torch.bfloat16), (False, torch.float16)]
)
def test_cuda_computes_in_bf16_only_where_it_is_native(
    monkeypatch, is_native, expected
):
    def is_supported(including_emulation=True):
        return is_native or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert autocast_dtype(torch.device("cuda", 0)) == expected


def test_a_cpu_computes_in_bf16():
    assert autocast_dtype(torch.device("cpu")) == torch.bfloat16
