"""Values from files are checked against schemas, and a violation is named by its key."""

from typing import Annotated, Any

import pytest
import torch
from msgspec import Meta, Struct
from torch import Tensor

from src.core.errors import CheckpointError
from src.core.schemas import (
    MAX_SHOWN,
    Count,
    Finite,
    Fraction,
    Text,
    checked,
    shown,
)


class Inner(Struct):
    name: Text
    number: Count = 0


class Outer(Struct):
    fraction: Fraction | None = None
    score: Finite = 0.0
    items: Annotated[list[Inner], Meta(max_length=3)] = []
    tensors: dict[str, Tensor] = {}
    nested: dict[str, dict[str, Inner]] = {}
    by_number: dict[int, Any] = {}

    def __post_init__(self) -> None:
        if self.score == 13:
            raise ValueError("Expected `another number than 13`")


def check(value: Any) -> Outer:
    return checked(value, Outer, file="a.pth", part="part", advice="use a copy")


def test_values_that_fit_are_converted():
    tensor = torch.ones(2)
    found = check(
        {"fraction": 1, "tensors": {"w": tensor}, "items": [{"name": "a"}]}
    )
    assert found.fraction == 1.0 and found.tensors["w"] is tensor
    assert found.items == [Inner("a", 0)]


def test_unknown_keys_are_ignored():
    assert check({"later": 1}) == Outer()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "part is a list of 0, expected a mapping"),
        ({"fraction": 2}, "part.fraction is 2, expected a number <= 1.0"),
        ({"fraction": "x"}, "part.fraction is 'x', expected a number or null"),
        (
            {"score": float("nan")},
            "part.score is nan, expected a finite number",
        ),
        ({"score": True}, "part.score is True, expected a number"),
        (
            {"score": 13},
            "part is a mapping of 1, expected another number than 13",
        ),
        ({"items": [{"name": "a"}, {}]}, "part.items[1] has no name"),
        (
            {"items": [{"name": "a", "number": -1}]},
            "part.items[0].number is -1, expected an integer >= 0",
        ),
        (
            {"items": [{"name": "a"}] * 4},
            "part.items is a list of 4, expected a list of length <= 3",
        ),
        (
            {"tensors": {"a": torch.ones(1), "b": 1}},
            "part.tensors.b is 1, expected a tensor",
        ),
        (
            {"nested": {"a": {"x": {"name": "n"}}, "b": {"y": {"name": 5}}}},
            "part.nested.b.y.name is 5, expected a text",
        ),
        ({1: 2}, "part has the key 1, expected a text"),
        (
            {"by_number": {3: 1, "four": 2}},
            "part.by_number has the key 'four', expected an integer",
        ),
    ],
)
def test_a_violation_is_named_by_its_key_and_value(value, message):
    with pytest.raises(CheckpointError) as caught:
        check(value)
    assert str(caught.value) == f"a.pth: {message}; use a copy"


def test_the_whole_content_has_a_name():
    with pytest.raises(
        CheckpointError, match="^a.pth: the content is 3, expected"
    ):
        checked(3, Outer, file="a.pth", part="", advice="use a copy")
    with pytest.raises(CheckpointError, match="^a.pth: score is 'x', expected"):
        checked(
            {"score": "x"}, Outer, file="a.pth", part="", advice="use a copy"
        )


def test_large_values_are_shortened_in_messages():
    assert shown(10**4000) == "an integer of 13288 bits"
    assert shown("x" * 1000) == f"'{'x' * (MAX_SHOWN - 1)} ..."
    assert shown(torch.ones(2, 3)) == "a tensor of shape [2, 3]"
