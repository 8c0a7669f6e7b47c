"""The seed of a step, windows of batches, and an evaluation."""

from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import nn

from src.core import NumericsError
from src.solver.det_engine import evaluate, seed_step, windows


def test_random_numbers_of_a_step_follow_from_seed_and_step():
    def draws(seed, step):
        seed_step(seed, step)
        return torch.rand(1).item(), np.random.rand()

    assert draws(1, 5) == draws(1, 5)
    assert draws(1, 5) != draws(1, 6) and draws(1, 5) != draws(2, 5)


def test_evaluation_restores_the_mode_and_counts_every_image():
    class Evaluator:
        def reset(self):
            self.seen = {}

        def update(self, predictions):
            self.seen |= predictions

        def synchronize(self):
            pass

        def summarize(self):
            return {"AP": float(len(self.seen))}

    class Blank(nn.Module):
        def forward(self, images):
            return {
                "pred_logits": torch.zeros(len(images), 1, 1),
                "pred_boxes": torch.zeros(len(images), 1, 4),
            }

    model, loader = (
        Blank().train(),
        [
            (
                torch.rand(2, 3, 4, 4),
                [
                    {
                        "image_id": torch.tensor([i]),
                        "orig_size": torch.tensor([4, 4]),
                    }
                    for i in ids
                ],
            )
            for ids in ((1, 2), (3, 4))
        ],
    )
    assert evaluate(
        model,
        lambda outputs, sizes: [{"scores": torch.ones(1)}] * len(sizes),
        loader,
        Evaluator(),
        torch.device("cpu"),
    ) == {"AP": 4.0}
    assert model.training


def test_detections_and_sizes_belong_to_the_image_with_their_id():
    """Pixels, size and id of an image are not exchanged with those of others in its batch."""
    kept = {}
    verbs = ["reset", "update", "synchronize", "summarize"]
    evaluator = MagicMock(spec=verbs, update=kept.update)

    class Mean(nn.Module):
        def forward(self, images):
            values = images.mean((1, 2, 3))[:, None, None]
            return {
                "pred_logits": values,
                "pred_boxes": values.expand(-1, 1, 4),
            }

    def postprocessor(outputs, sizes):
        pairs = zip(outputs["pred_logits"].flatten().tolist(), sizes.tolist())
        return [{"mean": mean, "size": size} for mean, size in pairs]

    def batch(*ids):
        images = (
            torch.tensor(ids).float()[:, None, None, None].expand(-1, 3, 4, 4)
        )
        sizes = [torch.tensor([10 * number, 100 * number]) for number in ids]
        return images, [
            {"image_id": torch.tensor([number]), "orig_size": size}
            for number, size in zip(ids, sizes)
        ]

    loader = [batch(5, 2, 3), batch(4, 1)]
    evaluate(Mean(), postprocessor, loader, evaluator, torch.device("cpu"))
    assert kept == {
        number: {"mean": number, "size": [10 * number, 100 * number]}
        for number in (5, 2, 3, 4, 1)
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_evaluation_of_a_model_that_overflows_is_an_error_with_the_image(
    value, tmp_path
):
    class Overflowing(nn.Module):
        def forward(self, images):
            logits = torch.zeros(len(images), 2, 3)
            logits[1, 1, 2] = value
            return {
                "pred_logits": logits,
                "pred_boxes": torch.zeros(len(images), 2, 4),
            }

    targets = [
        {"image_id": torch.tensor([i]), "orig_size": torch.tensor([4, 4])}
        for i in (7, 8)
    ]
    with pytest.raises(
        NumericsError,
        match="gives logits that are not finite for image 8: .*bad_batch.pth",
    ):
        evaluate(
            Overflowing(),
            lambda outputs, sizes: [{}] * len(sizes),
            [(torch.rand(2, 3, 4, 4), targets)],
            MagicMock(),
            torch.device("cpu"),
            folder=tmp_path,
        )
    assert (tmp_path / "bad_batch.pth").exists()


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, [[0], [1], [2]]), (2, [[0, 1], [2]]), (5, [[0, 1, 2]])],
)
def test_the_last_window_of_an_epoch_may_be_smaller(size, expected):
    assert list(windows(range(3), size)) == expected
