"""Images are prepared for prediction exactly as they are for evaluation."""

import pytest
import torch

from src.core import ConfigError
from src.inference import Preprocessing
from tests.fixtures.tiny import tiny_config

OPS = [
    {"type": "Resize", "size": [64, 96]},
    {"type": "ConvertPILImage", "dtype": "float32", "scale": True},
]


def test_the_result_is_bit_for_bit_that_of_the_validation_data(tiny_data):
    cfg = tiny_config(tiny_data, eval_spatial_size=[96, 64])
    dataset = cfg.val_dataloader.dataset
    batch, sizes = Preprocessing.from_config(cfg)(
        [dataset.raw_sample(i).image for i in range(3)]
    )
    for image, size, (expected, target) in zip(
        batch, sizes, (dataset[i] for i in range(3))
    ):
        assert torch.equal(image, expected) and torch.equal(
            size, target["orig_size"]
        )


def test_an_image_is_stretched_and_its_values_lie_between_0_and_1():
    batch, sizes = Preprocessing(OPS)(
        [
            torch.full((3, 30, 50), 255, dtype=torch.uint8),
            torch.zeros(3, 200, 100, dtype=torch.uint8),
        ]
    )
    assert (
        batch.shape == (2, 3, 64, 96)
        and batch[0].unique().tolist() == [1.0]
        and batch[1].unique().tolist() == [0.0]
    )
    assert sizes.tolist() == [[50, 30], [100, 200]]


def test_a_mean_is_taken_off():
    ops = [
        *OPS,
        {
            "type": "Normalize",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
    ]
    assert Preprocessing(ops)(
        [torch.full((3, 30, 50), 255, dtype=torch.uint8)]
    )[0].unique().tolist() == [2.0]


@pytest.mark.parametrize(
    "name", ["RandomHorizontalFlip", "PadToSize", "Unknown"]
)
def test_random_or_padding_transforms_are_refused(name):
    with pytest.raises(
        ConfigError,
        match=f"has {name}, but single images are prepared only with Resize",
    ):
        Preprocessing([{"type": name}, *OPS])


def test_transforms_without_a_size_are_refused():
    with pytest.raises(ConfigError, match="has no Resize"):
        Preprocessing(OPS[1:])


def test_another_input_size_leaves_everything_else():
    resized = Preprocessing(OPS).resized((32, 64))
    assert resized.input_size == (32, 64) and resized.ops[1] == OPS[1]
    assert (
        str(resized)
        == "RGB -> Resize(size=[32, 64]) -> ConvertPILImage(dtype=float32, scale=True)"
    )
