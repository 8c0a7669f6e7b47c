import logging

import pytest
import torch
from torch import nn

from src.core import NumericsError
from src.solver.numerics import (
    IN_A_ROW,
    BatchStatistics,
    NumericsGuard,
    first_bad_tensor,
    poisoned_total,
)


def test_a_skipped_step_is_logged_with_its_number_reason_and_images(caplog):
    with caplog.at_level(logging.WARNING, "dfine"):
        batch = (
            torch.zeros(2, 3, 4, 4),
            [{"image_path": "a.jpg"}, {"image_path": "b.jpg"}],
        )
        NumericsGuard(steps_per_epoch=5000).dropped(
            12, "loss_vfl is not finite", [batch]
        )
    assert (
        "step 12 skipped: loss_vfl is not finite on rank 0; images: a.jpg, b.jpg"
        in caplog.text
    )


def test_ten_skipped_steps_in_a_row_end_the_run():
    guard = NumericsGuard(steps_per_epoch=100_000)
    for step in range(IN_A_ROW - 1):
        guard.dropped(step, "x", [])
    with pytest.raises(
        NumericsError,
        match=r"^diverged at step 9: 10 steps in a row .*last.pth holds the latest state with finite values",
    ):
        guard.dropped(9, "x", [])


def test_a_good_step_ends_the_row():
    guard = NumericsGuard(steps_per_epoch=100_000)
    for step in range(3 * IN_A_ROW):
        guard.dropped(step, "x", [])
        guard.passed()
    assert guard.in_a_row == 0


def test_more_than_a_hundredth_of_an_epoch_ends_the_run():
    guard = NumericsGuard(steps_per_epoch=2000)
    with pytest.raises(NumericsError, match="21 of 2000 in this epoch"):
        for step in range(100):
            guard.dropped(step, "x", [])
            guard.passed()


def test_a_new_epoch_starts_a_new_count():
    guard = NumericsGuard(steps_per_epoch=2000, in_epoch=20)
    guard.start_epoch()
    assert guard.in_epoch == 0


def test_batch_statistics_come_back_after_a_bad_forward_pass():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    statistics = BatchStatistics(model)
    model(torch.randn(4, 3, 5, 5))
    good = model[1].running_mean.clone()
    statistics.remember()
    model(torch.full((4, 3, 5, 5), float("nan")))
    statistics.restore()
    assert torch.equal(model[1].running_mean, good)
    assert model[1].num_batches_tracked == 1


def test_the_first_bad_tensor_is_named_in_the_order_of_computation():
    good, bad, model = (
        torch.zeros(2),
        torch.tensor([0.0, float("inf")]),
        nn.Linear(2, 1),
    )
    assert (
        first_bad_tensor(bad, {"pred_logits": bad}, {}, model)
        == "the input image is not finite"
    )
    assert (
        first_bad_tensor(
            good,
            {"pred_logits": good, "aux_outputs": [{"pred_boxes": bad}]},
            {},
            model,
        )
        == "output.aux_outputs.0.pred_boxes is not finite"
    )
    assert (
        first_bad_tensor(good, {}, {"loss_vfl": bad}, model)
        == "loss_vfl is not finite"
    )
    model.weight.grad = torch.full((1, 2), float("nan"))
    assert (
        first_bad_tensor(good, {}, {}, model)
        == "the gradient of weight is not finite"
    )
    assert first_bad_tensor(good, {}, {}, nn.Linear(2, 1)) is None


def test_a_poisoned_total_reaches_every_output():
    outputs = {
        "a": torch.zeros(2, requires_grad=True),
        "b": [{"c": torch.zeros(3, requires_grad=True)}],
        "n": 3,
    }
    total = poisoned_total(outputs)
    total.backward()
    assert torch.isnan(total)
    assert (
        outputs["a"].grad.isnan().all()
        and outputs["b"][0]["c"].grad.isnan().all()
    )
