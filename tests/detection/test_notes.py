"""The notes of a checkpoint are refused as a whole if one of them is odd, and the key is named."""

import re

import pytest
import torch

from src.core.errors import CheckpointError
from src.detection.notes import checked_notes
from src.detection.weight_file import read_weights
from tests.fixtures.trained_tiny import TRAINED

NAN = float("nan")

ODD_NOTES = [
    ("classes", []),
    ("classes", "cat"),
    ("classes", {"1": "cat"}),
    ("classes", [1, 2, 3, 4]),
    ("classes", [{"id": 1}]),
    ("classes", [{"name": "cat"}]),
    ("classes", [{"id": "1", "name": "cat"}]),
    ("classes", [{"id": 1, "name": 7}]),
    ("classes", [{"id": -2, "name": "cat"}]),
    ("classes", [{"id": 2**60, "name": "cat"}]),
    ("classes", [{"id": True, "name": "cat"}]),
    ("classes", [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]),
    ("config", 3),
    ("config", ["model: DFINE"]),
    ("config", "#" * (1 << 20) + "#"),
    ("epoch", -1),
    ("epoch", "3"),
    ("epoch", 2.5),
    ("score", NAN),
    ("score", "best"),
    ("metric", 7),
    ("metrics", [0.5]),
    ("metrics", {"AP": torch.ones(1)}),
    ("metrics", {3: 0.5}),
    ("threshold", NAN),
    ("threshold", 1.5),
    ("threshold", "0.5"),
    ("threshold", True),
    ("preprocessing", "Resize"),
    ("preprocessing", [{"size": [64, 64]}]),
    ("preprocessing", [{"type": 3}]),
    ("input_size", 64),
    ("input_size", [64]),
    ("input_size", [64, 0]),
    ("input_size", [64, 10**9]),
    ("input_size", [64.0, 64.0]),
    ("licences", "MIT"),
    ("licences", [None]),
    ("commit", b"abc"),
    ("command", ["train.py"]),
    ("torch", 2.14),
    ("started", 0),
]


@pytest.mark.parametrize(
    ("key", "value"), ODD_NOTES, ids=lambda value: repr(value)[:30]
)
def test_an_odd_note_is_refused_with_its_key(key, value):
    with pytest.raises(
        CheckpointError, match=rf"^best.pth: meta.{key}|^best.pth: meta "
    ):
        checked_notes("best.pth", {key: value})


@pytest.mark.parametrize("notes", [0, "", [], "notes", False], ids=repr)
def test_notes_of_another_type_are_refused(notes):
    with pytest.raises(
        CheckpointError, match=r"^best.pth: meta is a .*expected a map"
    ):
        checked_notes("best.pth", notes)


def test_no_notes_and_unknown_notes_pass():
    assert checked_notes("best.pth", None) == {}
    assert checked_notes("best.pth", {"author": 3}) == {"author": 3}


def test_the_notes_of_a_trained_checkpoint_pass():
    notes = torch.load(TRAINED, weights_only=True)["meta"]
    assert checked_notes(TRAINED, notes) is notes


def test_an_odd_note_is_refused_when_the_file_is_read(tmp_path):
    content = torch.load(TRAINED, weights_only=True)
    content["meta"]["threshold"] = "high"
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(
        CheckpointError, match=re.escape("meta.threshold is 'high'")
    ):
        read_weights(tmp_path / "odd.pth")


def test_more_classes_than_the_class_head_has_are_refused(tmp_path):
    content = torch.load(TRAINED, weights_only=True)
    content["meta"]["classes"].append({"id": 99, "name": "more"})
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(
        CheckpointError, match="lists 5 classes, but the class head"
    ):
        _ = read_weights(tmp_path / "odd.pth").named_classes
