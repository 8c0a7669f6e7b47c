"""Settings of a decoder that cannot be used are refused."""

import pytest

from src.core import ConfigError
from tests.fixtures.detector import small_decoder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"feat_strides": [8, 16]},
            "feat_channels [16, 16, 16] and feat_strides [8, 16] differ in length",
        ),
        (
            {"num_levels": 2, "num_points": [1, 1]},
            "num_levels is 2, but there are 3 feat_channels",
        ),
        (
            {"num_points": [3, 6]},
            "num_points [3, 6] needs one number for each of 3 levels",
        ),
        ({"eval_idx": 3}, "eval_idx must point at one of 3 layers"),
        ({"eval_idx": -4}, "eval_idx must point at one of 3 layers"),
        ({"layer_scale": 0.5}, "layer_scale is 0.5, expected at least 1"),
        ({"reg_max": 31}, "reg_max is 31, expected an even number from 4"),
        ({"reg_max": 2}, "reg_max is 2, expected an even number from 4"),
        ({"num_classes": 0}, "num_classes is 0, expected at least 1"),
        ({"num_queries": 0}, "num_queries is 0, expected at least 1"),
        ({"num_denoising": -1}, "num_denoising is -1, expected at least 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError) as caught:
        small_decoder(**settings)
    assert str(caught.value) == f"DFINETransformer: {message}"
