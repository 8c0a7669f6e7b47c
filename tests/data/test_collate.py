"""From samples to a batch."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from src.core.build import create
from src.core.durations import RunLength
from src.core.errors import ConfigError
from src.data.collate import BatchImageCollateFunction, generate_scales
from src.data.transforms import Compose, ConvertBoxes, ConvertPILImage, Resize
from tests.fixtures.lengths import built_for
from tests.fixtures.samples import drawn, plain_sample, sample_of

TO_64 = Compose(
    [Resize([64, 64]), ConvertPILImage(), ConvertBoxes("cxcywh", True)]
)


def batch(count: int = 3, seed: int = 0, transforms: Compose = TO_64):
    return [
        transforms(sample_of(drawn(i), seed * 100 + i)) for i in range(count)
    ]


def sizes(collate, draws: int = 300, transforms: Compose = TO_64) -> Counter:
    """Return how often each (height, width) came out."""
    return Counter(
        tuple(collate(batch(1, seed, transforms))[0].shape[-2:])
        for seed in range(draws)
    )


# ---- the list of sizes ----


@pytest.mark.parametrize(
    ("base", "repeat", "scales"),
    [
        (
            640,
            3,
            [480, 512, 544, 576, 608, 640, 640, 640, 800, 768, 736, 704, 672],
        ),
        (640, 0, [480, 512, 544, 576, 608, 800, 768, 736, 704, 672]),
        (320, 1, [224, 256, 288, 320, 384, 352, 320]),
        (64, 2, [32, 64, 64, 64]),
        (32, 1, [32]),
    ],
)
def test_sizes_run_from_three_to_five_quarters_of_the_base(
    base, repeat, scales
):
    assert generate_scales(base, repeat) == scales


# ---- batches ----


def test_images_are_stacked_and_targets_listed():
    images, targets = BatchImageCollateFunction()(batch())
    assert (tuple(images.shape), images.dtype, len(targets)) == (
        (3, 3, 64, 64),
        torch.float32,
        3,
    )


def test_batch_holds_what_each_sample_alone_would_give():
    images, targets = BatchImageCollateFunction()(batch())
    for sample, image, target in zip(batch(), images, targets):
        alone, its_target = sample.render()
        assert torch.equal(image, alone)
        assert torch.equal(target["boxes"], its_target["boxes"])


def test_images_in_8_bits_stay_so():
    images, _ = BatchImageCollateFunction()(
        batch(transforms=Compose([Resize([64, 64])]))
    )
    assert images.dtype == torch.uint8


def test_without_a_repeat_all_batches_have_the_size_of_the_canvas():
    assert sizes(BatchImageCollateFunction(base_size=64), draws=30) == {
        (64, 64): 30
    }


def test_sizes_are_drawn_evenly_from_the_list():
    transforms = Compose([Resize([128, 128])])
    drawn_sizes = sizes(
        BatchImageCollateFunction(base_size=128, base_size_repeat=3),
        600,
        transforms,
    )
    assert generate_scales(128, 3) == [96, 128, 128, 128, 160]
    assert set(drawn_sizes) == {(96, 96), (128, 128), (160, 160)}
    assert abs(drawn_sizes[128, 128] - 360) < 4 * (600 * 0.6 * 0.4) ** 0.5


def test_boxes_of_a_resized_batch_stay_relative():
    collate = BatchImageCollateFunction(base_size=128, base_size_repeat=0)
    transforms = Compose([Resize([128, 128]), ConvertBoxes("cxcywh", True)])
    for seed in range(10):
        images, targets = collate(batch(1, seed, transforms))
        assert images.shape[-1] in (96, 160)
        expected = sample_of(drawn(0)).boxes / [160, 120, 160, 120]
        centres = torch.from_numpy(
            (expected[:, :2] + expected[:, 2:]) / 2
        ).float()
        assert (targets[0]["boxes"][:, :2] - centres).abs().max() < 1 / 96


def test_same_random_state_gives_the_same_size():
    collate = BatchImageCollateFunction(base_size=64, base_size_repeat=1)
    assert [collate(batch(2, seed))[0].shape for seed in range(8)] == [
        collate(batch(2, seed))[0].shape for seed in range(8)
    ]


def test_width_follows_the_height_in_proportion():
    transforms = Compose([Resize([128, 256])])
    assert set(
        sizes(
            BatchImageCollateFunction(base_size=128, base_size_repeat=1),
            60,
            transforms,
        )
    ) == {
        (96, 192),
        (128, 256),
        (160, 320),
    }


def test_width_is_rounded_to_the_stride():
    transforms = Compose([Resize([128, 160])])
    assert set(
        sizes(
            BatchImageCollateFunction(base_size=128, base_size_repeat=1),
            60,
            transforms,
        )
    ) == {
        (96, 128),
        (128, 160),
        (160, 192),
    }


@pytest.mark.parametrize(
    ("epoch", "several"), [(0, True), (4, True), (5, False), (9, False)]
)
def test_clean_stage_has_the_base_size_alone(epoch, several):
    collate = BatchImageCollateFunction(
        stop_epoch=5, base_size=64, base_size_repeat=1
    )
    collate.set_epoch(epoch)
    assert (len(sizes(collate, draws=40)) > 1) is several


def test_base_size_in_the_clean_stage_is_that_of_the_canvas():
    collate = BatchImageCollateFunction(
        stop_epoch=0, base_size=64, base_size_repeat=1
    )
    assert sizes(collate, draws=20) == {(64, 64): 20}


def test_clean_stage_may_begin_at_a_fraction_of_the_run():
    assert (
        built_for(
            RunLength(72),
            {"type": "BatchImageCollateFunction", "stop_epoch": 0.9},
        ).stop_epoch
        == 64
    )


# ---- finished images, as a data set of a user's own gives them ----


def finished(count: int = 2, size: int = 64):
    return [
        (
            torch.rand(3, size, size),
            {
                "boxes": torch.rand(1, 4),
                "labels": torch.zeros(1, dtype=torch.int64),
                "idx": torch.tensor([i]),
            },
        )
        for i in range(count)
    ]


def test_finished_images_are_stacked():
    items = finished()
    images, targets = BatchImageCollateFunction()(items)
    assert torch.equal(images, torch.stack([image for image, _ in items]))
    assert targets == [target for _, target in items]


def test_finished_images_are_resized_to_the_drawn_size():
    items = finished()
    images, _ = BatchImageCollateFunction(base_size=128, base_size_repeat=0)(
        items
    )
    assert torch.equal(
        images,
        F.interpolate(
            torch.stack([image for image, _ in items]), tuple(images.shape[-2:])
        ),
    )
    assert images.shape[-1] in (96, 160)


def test_finished_images_without_an_index_are_taken_too():
    images, _ = BatchImageCollateFunction(base_size=64, base_size_repeat=1)(
        [(torch.rand(3, 64, 64), {"boxes": torch.zeros(0, 4)})]
    )
    assert images.shape[0] == 1


# ---- mixing ----


def counts(collate, epoch: int = 0, seeds: int = 1) -> list[int]:
    """Return by how many boxes batches of three images grew, of the images together."""
    collate.set_epoch(epoch)
    return [
        sum(len(t["boxes"]) for t in collate(batch(seed=seed))[1])
        - sum(len(drawn(i).boxes) for i in range(3))
        for seed in range(seeds)
    ]


OWN = sum(len(drawn(i).boxes) for i in range(3))
"""What mixup adds; CopyBlend adds three objects an image, 9."""


@pytest.mark.parametrize(
    ("settings", "grown"),
    [
        ({}, 0),
        ({"mixup_prob": 1}, OWN),
        ({"copyblend_prob": 1}, 9),
        ({"copyblend_prob": 1, "num_objects": 1}, 3),
        ({"mixup_prob": 1, "copyblend_prob": 1}, OWN),
        ({"copyblend_prob": 1, "area_threshold": 64 * 64}, 0),
    ],
)
def test_batch_is_mixed_as_it_is_set(settings, grown):
    assert OWN != 9
    assert counts(BatchImageCollateFunction(**settings)) == [grown]


def test_mixup_and_copies_have_their_fraction_of_the_batches():
    """Copies come where mixup did not: 0.5 and (1 - 0.5) * 0.4."""
    grown = Counter(
        counts(
            BatchImageCollateFunction(mixup_prob=0.5, copyblend_prob=0.4),
            seeds=300,
        )
    )
    assert set(grown) == {0, OWN, 9}
    for value, share in ((OWN, 0.5), (9, 0.2)):
        assert (
            abs(grown[value] - 300 * share)
            < 4 * (300 * share * (1 - share)) ** 0.5
        )


@pytest.mark.parametrize(
    ("epoch", "grown"), [(3, 0), (4, OWN), (33, OWN), (34, 9), (59, 9), (60, 0)]
)
@pytest.mark.parametrize(
    "ends", [(34, 60), (0.34, 0.6), ("34 epochs", "60 %")], ids=str
)
def test_mixup_and_copies_act_in_their_epochs(ends, epoch, grown):
    epochs = {
        "mixup_epochs": [4, ends[0]],
        "copyblend_epochs": ["4 epochs", ends[1]],
    }
    chances = {"mixup_prob": 1, "copyblend_prob": 1}
    collate = built_for(
        RunLength(100),
        {"type": "BatchImageCollateFunction", **epochs, **chances},
    )
    assert counts(collate, epoch) == [grown]


@pytest.mark.parametrize(("epoch", "grown"), [(0, OWN), (4, OWN), (5, 0)])
def test_without_epochs_of_their_own_they_act_up_to_the_clean_stage(
    epoch, grown
):
    assert counts(
        BatchImageCollateFunction(stop_epoch=5, mixup_prob=1), epoch
    ) == [grown]


@pytest.mark.parametrize("setting", ["mixup_prob", "copyblend_prob"])
def test_mixed_batch_has_the_size_that_it_would_have_unmixed(setting):
    plain, mixed = (
        BatchImageCollateFunction(base_size=64, base_size_repeat=1),
        BatchImageCollateFunction(
            base_size=64, base_size_repeat=1, **{setting: 0.5}
        ),
    )
    assert [plain(batch(2, seed))[0].shape for seed in range(8)] == [
        mixed(batch(2, seed))[0].shape for seed in range(8)
    ]


def test_batch_that_is_not_selected_for_mixing_is_unchanged():
    plain, mixed = (
        BatchImageCollateFunction(),
        BatchImageCollateFunction(mixup_prob=1e-9, copyblend_prob=1e-9),
    )
    assert torch.equal(plain(batch())[0], mixed(batch())[0])


def test_same_random_state_gives_the_same_mix():
    collate = BatchImageCollateFunction(
        mixup_prob=0.5, copyblend_prob=0.5, with_expand=True
    )
    for seed in range(8):
        (a, s), (b, t) = collate(batch(seed=seed)), collate(batch(seed=seed))
        assert torch.equal(a, b) and all(
            torch.equal(p["boxes"], q["boxes"]) for p, q in zip(s, t)
        )


@pytest.mark.parametrize("setting", ["mixup_prob", "copyblend_prob"])
def test_all_fields_grow_with_the_boxes(setting):
    _, targets = BatchImageCollateFunction(**{setting: 1})(batch())
    assert all(
        len(t["boxes"]) == len(t["labels"]) == len(t["index"]) for t in targets
    )


@pytest.mark.parametrize("setting", ["mixup_prob", "copyblend_prob"])
def test_finished_images_are_mixed_too(setting):
    items = finished()
    images, targets = BatchImageCollateFunction(
        area_threshold=1e-3, num_objects=1, **{setting: 1}
    )(items)
    assert not torch.equal(images, torch.stack([image for image, _ in items]))
    assert [
        (len(t["boxes"]), len(t["labels"]), len(t["idx"])) for t in targets
    ] == [
        (2, 2, 1),
        (2, 2, 1),
    ]


@pytest.mark.parametrize(
    "transforms",
    [
        Compose([Resize([64, 64])]),
        Compose([Resize([64, 64]), ConvertPILImage()]),
        Compose(
            [Resize([64, 64]), ConvertPILImage(), ConvertBoxes("xyxy", True)]
        ),
    ],
)
def test_samples_that_cannot_be_mixed_are_refused_from_the_first_batch_on(
    transforms,
):
    with pytest.raises(
        ConfigError,
        match="^mixup and CopyBlend take floating-point images and boxes as cxcywh in 0..1, but got torch.",
    ):
        BatchImageCollateFunction(mixup_prob=0.1, mixup_epochs=[4, 5])(
            batch(transforms=transforms)
        )


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"mixup_prob": 1.5}, "mixup_prob is 1.5, expected 0 to 1"),
        ({"copyblend_prob": -1.0}, "copyblend_prob is -1.0, expected 0 to 1"),
        (
            {"mixup_epochs": [4]},
            "mixup_epochs is [4], expected two values: the first epoch with it and the first without",
        ),
        (
            {"copyblend_epochs": [40, 4]},
            "copyblend_epochs is [40, 4], which are the epochs 40, 4; they must be in ascending order",
        ),
        (
            {"copyblend_type": "cut"},
            "copyblend_type is 'cut', expected 'blend' or 'paste'",
        ),
        ({"num_objects": 0}, "num_objects is 0, expected at least 1"),
    ],
)
def test_setting_of_mixing_out_of_range_is_refused(settings, fault):
    with pytest.raises(ConfigError) as caught:
        create({"type": "BatchImageCollateFunction", **settings})
    assert str(caught.value) == f"BatchImageCollateFunction.{fault}"


def test_mixing_may_continue_to_the_end():
    specification = {
        "type": "BatchImageCollateFunction",
        "copyblend_epochs": [0.5, None],
        "stop_epoch": None,
    }
    assert built_for(RunLength(10), specification).copyblend_epochs == (5, None)


# ---- settings ----


@pytest.mark.parametrize("size", [100, 0, -32, 16])
def test_base_size_that_is_not_a_multiple_of_the_stride_is_refused(size):
    with pytest.raises(
        ConfigError,
        match=f"^BatchImageCollateFunction.base_size is {size}, expected a multiple of 32$",
    ):
        create({"type": "BatchImageCollateFunction", "base_size": size})


def test_narrow_canvas_keeps_one_stride_of_width():
    transforms = Compose([Resize([128, 8])])
    collate = BatchImageCollateFunction(base_size=128, base_size_repeat=0)
    assert {width for _, width in sizes(collate, 10, transforms)} == {32}


def test_plain_sample_goes_through():
    images, _ = BatchImageCollateFunction()([plain_sample(32, 32)])
    assert torch.equal(images[0], plain_sample(32, 32).image)
