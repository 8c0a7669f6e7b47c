"""Sums over the steps of an epoch."""

from collections import Counter

import torch

from src.solver.epoch_meter import EpochMeter


def test_the_meter_gives_the_mean_of_each_term_and_their_sum():
    meter = EpochMeter()
    meter.add(
        {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, images=4, waited=0.5
    )
    meter.add(
        {"a": torch.tensor(3.0), "b": torch.tensor(2.0)}, images=4, waited=0.5
    )
    assert meter.means() == {"loss": 4.0, "a": 2.0, "b": 2.0}
    assert (meter.images, meter.waited) == (8, 1.0)


def test_a_meter_of_an_epoch_without_a_good_step_is_empty():
    assert EpochMeter().means() == {}


def test_boxes_are_counted_with_what_dropped_them():
    meter = EpochMeter()
    targets = [
        {"boxes_read": 5, "boxes_lost": {"Crop": 2}},
        {"boxes_read": 3, "boxes_lost": {"Crop": 1}},
        {},
    ]
    meter.count_boxes([(torch.rand(3, 3, 4, 4), targets)])
    assert meter.boxes_of_all_ranks() == (8, Counter({"Crop": 3}))


def test_a_meter_that_is_restored_continues_with_the_same_sums():
    meter = EpochMeter()
    meter.add({"a": torch.tensor(1.0)}, images=4, waited=0.5)
    meter.count_boxes(
        [
            (
                torch.rand(1, 3, 4, 4),
                [{"boxes_read": 5, "boxes_lost": {"Crop": 2}}],
            )
        ]
    )
    restored = EpochMeter.from_state(meter.state_dict(), torch.device("cpu"))
    restored.add({"a": torch.tensor(3.0)}, images=4, waited=0.5)
    assert restored.means() == {"loss": 2.0, "a": 2.0}
    assert (restored.images, restored.waited, restored.boxes_read) == (
        8,
        1.0,
        5,
    )
    assert restored.seconds >= meter.state_dict()["seconds"] - 1e-3


def test_a_state_of_before_boxes_were_counted_is_restored():
    state = EpochMeter().state_dict()
    del state["boxes_read"], state["boxes_lost"]
    assert EpochMeter.from_state(
        state, torch.device("cpu")
    ).boxes_of_all_ranks() == (
        0,
        Counter(),
    )
