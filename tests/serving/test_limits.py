"""Limits are positive."""

import math

import pytest

from src.core.errors import ConfigError
from src.serving.limits import Limits


@pytest.mark.parametrize(
    "name", ["max_bytes", "max_pixels", "queue", "seconds", "upload_seconds"]
)
def test_a_limit_must_be_positive(name):
    with pytest.raises(ConfigError, match=f"{name} is 0, expected"):
        Limits(**{name: 0})


@pytest.mark.parametrize("name", ["seconds", "upload_seconds"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 86_401])
def test_a_time_limit_is_at_most_a_day(name, value):
    with pytest.raises(ConfigError, match=f"{name} is .* at most 86400"):
        Limits(**{name: value})


def test_the_limit_on_pixels_is_not_above_that_of_decoding():
    with pytest.raises(ConfigError, match="expected at most 89478485"):
        Limits(max_pixels=100_000_000)
