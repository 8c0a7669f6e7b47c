"""NaN and infinity are found wherever they are (K6)."""

import numpy as np
import pytest
import torch

from src.core.errors import NumericsError
from src.runtime.finite import first_non_finite, refuse_non_finite_detections, tensors_in

NAN, INF = float("nan"), float("inf")


def test_tensors_are_found_with_their_places():
    content = {"model": {"w": torch.ones(1)}, "state": [{"m": torch.zeros(2)}, (torch.ones(3), "x")], "n": 3}
    assert [name for name, _ in tensors_in(content)] == ["model.w", "state.0.m", "state.1.0"]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_bad_number_among_many_is_found(value, dtype):
    bad = torch.ones(1000, dtype=dtype)
    bad[777] = value
    assert first_non_finite({"a": torch.ones(3), "b": [torch.zeros(2), bad]}) == "b.1"


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": torch.ones(3)},
        {"a": torch.tensor([1, 2]), "b": torch.tensor([True])},
        {"a": torch.zeros(0)},
        {"a": torch.full((4,), 3e38), "b": torch.full((4,), 65504.0, dtype=torch.float16)},
        {
            "model": {"decoder.anchors": torch.tensor([INF])},
            "ema": {"module": {"decoder.anchors": torch.tensor([INF])}},
        },
    ],
    ids=["nothing", "one", "no floats", "empty", "large", "anchors"],
)
def test_what_is_finite_or_infinite_on_purpose_passes(content):
    assert first_non_finite(content) is None


@pytest.mark.parametrize("key", ["scores", "boxes"])
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_detections_that_are_not_numbers_are_refused_with_the_image(key, kind):
    found = {"scores": kind([0.5, 0.1]), "boxes": kind([[1.0, 2.0, 3.0, 4.0]])}
    refuse_non_finite_detections(found, "a.jpg")
    found[key][0] = NAN
    with pytest.raises(NumericsError, match=f"gives {key} that are not finite for a.jpg"):
        refuse_non_finite_detections(found, "a.jpg")
