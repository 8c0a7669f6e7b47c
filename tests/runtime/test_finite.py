"""NaN and infinity are found wherever they are (K6)."""

import numpy as np
import pytest
import torch

from src.core.errors import NumericsError
from src.runtime.finite import (
    first_non_finite,
    refuse_non_finite_outputs,
    tensors_in,
)

NAN, INF = float("nan"), float("inf")


def test_tensors_are_found_with_their_places():
    content = {
        "model": {"w": torch.ones(1)},
        "state": [{"m": torch.zeros(2)}, (torch.ones(3), "x")],
        "n": 3,
    }
    assert [name for name, _ in tensors_in(content)] == [
        "model.w",
        "state.0.m",
        "state.1.0",
    ]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_one_bad_number_among_many_is_found(value, dtype):
    bad = torch.ones(1000, dtype=dtype)
    bad[777] = value
    assert (
        first_non_finite({"a": torch.ones(3), "b": [torch.zeros(2), bad]})
        == "b.1"
    )


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": torch.ones(3)},
        {"a": torch.tensor([1, 2]), "b": torch.tensor([True])},
        {"a": torch.zeros(0)},
        {
            "a": torch.full((4,), 3e38),
            "b": torch.full((4,), 65504.0, dtype=torch.float16),
        },
        {
            "model": {"decoder.anchors": torch.tensor([INF])},
            "ema": {"module": {"decoder.anchors": torch.tensor([INF])}},
        },
    ],
    ids=["nothing", "one", "no floats", "empty", "large", "anchors"],
)
def test_what_is_finite_or_infinite_on_purpose_passes(content):
    assert first_non_finite(content) is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("scores", "scores"),
        ("boxes", "boxes"),
        ("pred_logits", "logits"),
        ("pred_boxes", "boxes"),
    ],
)
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_outputs_that_are_not_numbers_are_refused_with_the_image(
    key, expected, value, kind
):
    found = {
        key: kind([[[0.5, 0.1]], [[0.2, 0.3]]]),
        "labels": kind([[NAN], [NAN]]),
    }
    refuse_non_finite_outputs(found, ["a.jpg", "b.jpg"])
    found[key][1, 0, 1] = value
    with pytest.raises(
        NumericsError, match=f"gives {expected} that are not finite for b.jpg"
    ):
        refuse_non_finite_outputs(found, ["a.jpg", "b.jpg"])


def test_no_detections_are_finite():
    refuse_non_finite_outputs(
        {"scores": torch.zeros(2, 0), "boxes": torch.zeros(2, 0, 4)},
        ["a.jpg", "b.jpg"],
    )
    refuse_non_finite_outputs({}, ["a.jpg"])
