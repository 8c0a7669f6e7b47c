"""Two ranks with half the batch each are one rank with the whole batch."""

import pytest
import torch

from tests.fixtures.commands import run_python, write_tiny_config
from tests.fixtures.slow import slow
from tests.fixtures.tiny import write_tiny_teacher

WORKER = "tests/end_to_end/gradients_worker.py"


@pytest.fixture(
    scope="module",
    params=[{}, *slow({"windows": 2, "window_blocks": [0]})],
    ids=["global", "windows"],
)
def gradients(request, tiny_data, tmp_path_factory):
    """Results of one and two ranks in the first step of an epoch, with the same total batch."""
    folder = tmp_path_factory.mktemp("ranks")
    config = write_tiny_config(
        folder,
        tiny_data,
        train_dataloader={"total_batch_size": 8},
        DINOv3Backbone=request.param,
        DFINETransformer={"num_denoising": 0},
        DFINECriterion={"weight_dict": {"loss_ddf": 0}},
        distillation=write_tiny_teacher(folder),
    )
    results = {}
    for ranks in (1, 2):
        result = run_python(
            WORKER, config, folder / f"{ranks}.pth", ranks=ranks
        )
        assert result.returncode == 0, result.stderr
        results[ranks] = torch.load(folder / f"{ranks}.pth", weights_only=True)
    return results


def test_the_images_of_every_step_of_an_epoch_are_the_same(gradients):
    assert [sorted(step) for step in gradients[1]["images"]] == [
        sorted(step) for step in gradients[2]["images"]
    ]


def test_every_gradient_agrees(gradients):
    one, two = gradients[1]["gradients"], gradients[2]["gradients"]
    assert one.keys() == two.keys() and len(one) > 100
    assert {"projector.weight", "projector.bias"} <= set(one)
    floor = 1e-3 * max(g.norm() for g in one.values())
    apart = {
        name: (
            (one[name] - two[name]).norm() / one[name].norm().clamp(min=floor)
        ).item()
        for name in one
    }
    assert max(apart.values()) <= 1e-4


def test_the_loss_agrees(gradients):
    assert gradients[2]["loss"] == pytest.approx(gradients[1]["loss"], rel=1e-4)
