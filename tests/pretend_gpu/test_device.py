"""The pretended GPU itself: it finds the mistakes that it is made for."""

import pytest

from tests.pretend_gpu import runtime


@pytest.fixture(scope="module")
def mistakes(gpu):
    (result,) = gpu.call("mistakes", devices=2)
    assert result.code == 0, result.output
    return result.value


def test_operands_on_several_devices_are_refused(mistakes):
    assert "cuda:0 and cuda:1 in aten::add" in mistakes["another device"]
    assert "cpu and cuda:0 in aten::add" in mistakes["the host"]


def test_numbers_and_indices_may_be_on_the_host(mistakes):
    assert "a number on the host" not in mistakes
    assert "an index on the host" not in mistakes


def test_synchronizations_are_recorded_with_their_reason(mistakes):
    rows = mistakes["report"]["synchronizations"]
    assert sorted(reason for _, reason, _ in rows) == [
        "a number is copied from the host",
        "a value is read",
        "an index is a mask",
        "torch.tensor copies from the host",
    ]
    assert all(times == 1 for *_, times in rows)


def test_kernels_that_are_not_computed_fail_and_are_counted(mistakes):
    assert mistakes["report"]["launches"] == 0
    assert "operation not supported" in mistakes["a thread"]
    assert mistakes["launches"] == 1


def test_without_a_compiler_tests_are_skipped_or_fail_if_ci_requires_them(
    monkeypatch,
):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(runtime.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="gcc is not installed"):
        runtime.skip_if_missing()
    monkeypatch.setenv(runtime.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="gcc is not installed"):
        runtime.skip_if_missing()
