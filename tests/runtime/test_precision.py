"""The data type of mixed precision by device, and float32 without TF32."""

import pytest
import torch

from src.runtime.precision import autocast_dtype, full_float32


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


def precisions() -> list[str]:
    cudnn = torch.backends.cudnn
    return [cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]


def test_full_float32_ends_with_what_was_set_before():
    before = precisions()
    with full_float32():
        assert precisions() == ["ieee", "ieee"]
        with full_float32():
            pass
        assert precisions() == ["ieee", "ieee"]
    assert precisions() == before


def test_threads_that_overlap_leave_what_was_set_before():
    """The second thread ends last; without counting, it would restore what the first one had set."""
    before = precisions()
    first = full_float32()
    second = full_float32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert precisions() == ["ieee", "ieee"]
    second.__exit__(None, None, None)
    assert precisions() == before
