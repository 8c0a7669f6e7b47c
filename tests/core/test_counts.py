"""Counts in messages agree with their nouns."""

from __future__ import annotations

import pytest

from src.core.counts import counted


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images")]
)
def test_a_noun_is_singular_only_for_one(count, text):
    assert counted(count, "image") == text


def test_nouns_with_another_plural_are_given_with_it():
    assert counted(1, "box", "boxes") == "1 box"
    assert counted(3, "box", "boxes") == "3 boxes"


def test_thousands_are_separated():
    assert counted(118_287, "image") == "118,287 images"
