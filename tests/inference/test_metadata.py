"""The metadata of an exported model is refused as a whole if one entry is odd, and the entry is named."""

import json
from pathlib import Path

import pytest

from src.core.errors import CheckpointError
from src.inference.metadata import Metadata

WHERE = Path("model.onnx")

GOOD = {
    "preprocessing": [{"type": "Resize", "size": [64, 64]}],
    "classes": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
    "threshold": 0.4,
    "input_size": [64, 64],
    "batch_size": None,
    "licences": [],
    "commit": None,
    "checkpoint": "best.pth",
    "format": 1,
}

ODD = [
    ("preprocessing", []),
    ("preprocessing", None),
    ("preprocessing", {"type": "Resize"}),
    ("preprocessing", ["Resize"]),
    ("preprocessing", [{"size": [64, 64]}]),
    ("preprocessing", [{"type": 5}]),
    ("classes", []),
    ("classes", None),
    ("classes", {"1": "cat"}),
    ("classes", ["cat"]),
    ("classes", [{"id": 1}]),
    ("classes", [{"id": "1", "name": "cat"}]),
    ("classes", [{"id": 1.0, "name": None}]),
    ("classes", [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]),
    ("classes", [{"id": 10**40, "name": "cat"}]),
    ("threshold", None),
    ("threshold", -0.1),
    ("threshold", 2),
    ("threshold", "0.4"),
    ("threshold", False),
    ("input_size", None),
    ("input_size", 64),
    ("input_size", [64]),
    ("input_size", [64, 64, 3]),
    ("input_size", [0, 64]),
    ("input_size", [64, -64]),
    ("input_size", ["64", "64"]),
    ("batch_size", 0),
    ("batch_size", "1"),
    ("batch_size", 1.5),
    ("batch_size", True),
    ("licences", "none"),
    ("licences", [1]),
    ("commit", 7),
    ("checkpoint", ["best.pth"]),
    ("format", 0),
    ("format", "1"),
]


def test_metadata_is_read_back_as_it_was_written():
    metadata = Metadata.from_json(json.dumps(GOOD), WHERE)
    assert Metadata.from_json(metadata.to_json(), WHERE) == metadata
    assert metadata.classes == GOOD["classes"]
    assert metadata.preprocessing == GOOD["preprocessing"]


@pytest.mark.parametrize(
    ("key", "value"), ODD, ids=lambda value: repr(value)[:30]
)
def test_an_odd_entry_is_refused_with_its_key(key, value):
    text = json.dumps(GOOD | {key: value})
    with pytest.raises(
        CheckpointError, match="export the model again$"
    ) as caught:
        Metadata.from_json(text, WHERE)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "key", ["preprocessing", "classes", "threshold", "input_size"]
)
def test_a_missing_entry_is_named(key):
    content = {name: value for name, value in GOOD.items() if name != key}
    with pytest.raises(
        CheckpointError, match=f"^model.onnx: metadata has no {key};"
    ):
        Metadata.from_json(json.dumps(content), WHERE)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"threshold": NaN}', "null", '"text"', "3"],
)
def test_text_that_is_not_metadata_is_refused(text):
    with pytest.raises(
        CheckpointError, match=r"^model.onnx(: metadata is| has damaged)"
    ):
        Metadata.from_json(text, WHERE)
