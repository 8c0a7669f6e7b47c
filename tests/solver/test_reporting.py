"""What is logged at the start of a run."""

import pytest

from src.solver.reporting import boxes_record, horizon_warning


@pytest.mark.parametrize(
    ("horizon", "steps", "warned"),
    [(10_000, 2480, True), (50, 2480, False), (497, 2480, True), (496, 2480, False), (10_000, 250, False)],
)
def test_a_horizon_above_a_fifth_of_a_run_is_warned_about_unless_the_run_is_short(horizon, steps, warned):
    text = horizon_warning(horizon, steps)
    assert (text is not None) == warned
    if warned:
        assert f"horizon of {horizon:,} steps is more than a fifth of this run's {steps:,}" in text
        assert "ema.decay=~" in text


def test_the_record_of_an_epoch_holds_the_boxes_that_were_read_and_lost(caplog):
    assert boxes_record(3, 100, {"RandomIoUCrop": 30}) == {
        "boxes_read": 100,
        "boxes_lost": {"RandomIoUCrop": 30},
    }
    assert caplog.text == ""


def test_an_epoch_whose_augmentation_drops_most_boxes_is_warned_about(caplog):
    boxes_record(3, 100, {"SanitizeBoundingBoxes": 20, "RandomIoUCrop": 31})
    assert (
        "epoch 4: of 100 boxes that were read 51 did not reach the loss: RandomIoUCrop dropped 31, "
        "SanitizeBoundingBoxes dropped 20"
    ) in caplog.text
