"""The account of labels from the file to the loss."""

from pathlib import Path

import pytest

from src.core.errors import DataError
from src.data.dataset.label_ledger import LabelLedger


@pytest.fixture
def ledger():
    account = LabelLedger(Path("train.json"), 1200)
    account.add("without area or reversed", 3, "lost")
    account.add("crowd regions", 20, "left out")
    account.add("clipped to their image", 7, "changed")
    account.add("outside their image", 0, "lost")
    account.add("smaller than 1 pixel at 64 x 64", 100, "lost", "size")
    return account


def test_the_table_adds_up_and_names_no_reason_without_a_box(ledger):
    assert [line.split() for line in ledger.lines()] == [
        ["labels", "of", "train.json", "boxes"],
        ["in", "the", "file", "1,200"],
        ["without", "area", "or", "reversed,", "lost", "-3"],
        ["crowd", "regions,", "left", "out", "-20"],
        [
            "smaller",
            "than",
            "1",
            "pixel",
            "at",
            "64",
            "x",
            "64,",
            "lost",
            "-100",
        ],
        ["usable", "1,077", "89.8", "%"],
        ["of", "these,", "clipped", "to", "their", "image", "7"],
    ]


def test_columns_stand_below_each_other(ledger):
    ends = {
        line.rstrip(" %").rfind(" ")
        for line in ledger.lines()
        if "%" not in line
    }
    assert (
        len(
            {
                len(line.split("  %")[0])
                for line in ledger.lines()
                if "usable" not in line
            }
        )
        == 1
        and ends
    )


def test_losing_up_to_half_is_no_fault(ledger):
    ledger.add("outside their image", 1180 // 2 - 103, "lost")
    assert ledger.fault is None
    ledger.raise_if_mostly_lost()


@pytest.mark.parametrize(
    ("cause", "advice"),
    [("box", "dataset.box_order"), ("size", "eval_spatial_size")],
)
def test_losing_more_than_half_is_one_with_what_helps_against_the_main_reason(
    ledger, cause, advice
):
    ledger.add("lost to a test", 600, "lost", cause)
    with pytest.raises(DataError) as caught:
        ledger.raise_if_mostly_lost()
    message = str(caught.value)
    assert message.startswith(
        "train.json: 703 of 1180 boxes would be lost before the loss (3 without area or reversed, "
    )
    assert "600 lost to a test" in message and advice in message


def test_boxes_that_a_file_excludes_on_purpose_are_not_counted_as_lost():
    account = LabelLedger(Path("a.json"), 10)
    account.add("flagged to be ignored", 9, "left out")
    assert account.fault is None and account.learned == 1


def test_a_file_without_boxes_has_no_proportions():
    assert [
        line.split()[-1] for line in LabelLedger(Path("a.json"), 0).lines()
    ] == [
        "boxes",
        "0",
        "0",
    ]
