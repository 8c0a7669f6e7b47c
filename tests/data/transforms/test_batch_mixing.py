"""Mixing the images of a batch: every box lies on its pixels, the old ones and the added ones."""

import numpy as np
import pytest
import torch

from src.core.errors import ConfigError
from src.data.transforms import Compose, ConvertBoxes, ConvertPILImage, Resize
from src.data.transforms.batch_mixing import (
    BLEND_RANGE,
    CopyBlend,
    check_mixable,
    mixup,
)
from tests.fixtures.samples import Drawn, drawn, filled, sample_of, tight_box

HEIGHT, WIDTH = 96, 128
FIELDS = ("boxes", "index", "labels")
TO_BATCH = Compose(
    [Resize([HEIGHT, WIDTH]), ConvertPILImage(), ConvertBoxes("cxcywh", True)]
)


def batch(seed: int, count: int = 3, shown: int | None = None):
    """Return images and targets of scenes; with `shown`, all images show only the filled box of that object.

    The field `index` of a box is 10 times the number of its image and the object's number.
    """
    images, targets = [], []
    for number in range(count):
        scene = drawn(count * seed + number)
        sample = sample_of(scene, seed)
        sample.fields["index"] = sample.fields["index"] + 10 * number
        if shown is not None:
            mask = (
                filled(scene.boxes[shown % 10], *scene.image.shape[1:])
                if shown // 10 == number
                else np.zeros(scene.image.shape[1:])
            )
            sample.image = (
                torch.from_numpy(mask)
                .to(torch.uint8)
                .mul(255)
                .expand(3, -1, -1)
            )
        image, target = TO_BATCH(sample).render()
        images.append(image)
        targets.append(target)
    return torch.stack(images), targets


def empty_batch(count: int = 2):
    pairs = [
        TO_BATCH(
            sample_of(
                Drawn(drawn(0).image, drawn(0).masks[:0], np.zeros((0, 4)))
            )
        ).render()
        for _ in range(count)
    ]
    return torch.stack([image for image, _ in pairs]), [
        target for _, target in pairs
    ]


def corners(boxes: torch.Tensor) -> np.ndarray:
    """Return boxes as xyxy in pixels."""
    half = boxes[:, 2:] / 2
    return (
        torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], 1)
        * torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    ).numpy()


def window(box: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the whole pixels that a box touches, as an index of `[3, H, W]`."""
    low, high = (
        np.floor(box[:2] + 1e-2).astype(int),
        np.ceil(box[2:] - 1e-2).astype(int),
    )
    return slice(None), slice(low[1], high[1]), slice(low[0], high[0])


# ---- mixup ----


def mixed_up(images, targets, seed: int = 0):
    images = images.clone()
    return images, mixup(images, targets, FIELDS, np.random.default_rng(seed))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_mixup_blends_each_image_with_the_one_before_it(count):
    before, targets = batch(0, count)
    for seed in range(10):
        weight = np.random.default_rng(seed).uniform(*BLEND_RANGE)
        torch.testing.assert_close(
            mixed_up(before, targets, seed)[0],
            before * (1 - weight) + before.roll(1, 0) * weight,
        )


def test_mixup_keeps_every_box_on_its_pixels():
    compared = 0
    for seed in range(10):
        _, targets = mixed_up(*batch(seed), seed)
        for number, target in enumerate(targets):
            for box, index in zip(
                corners(target["boxes"]), target["index"].tolist()
            ):
                if (box[2:] - box[:2]).min() >= 8:
                    assert number in (index // 10, (index // 10 + 1) % 3)
                    seen, _ = mixed_up(*batch(seed, shown=index), seed)
                    assert (
                        abs(
                            box - tight_box(seen[number, 0].numpy() > 0.22)
                        ).max()
                        < 1
                    )
                    compared += 1
    assert compared > 100


def test_mixup_keeps_the_objects_of_both_images_and_what_belongs_to_the_image():
    images, targets = batch(1)
    for number, target in enumerate(targets):
        target["image_id"] = torch.tensor([number])
    _, mixed = mixed_up(images, targets)
    for number, target in enumerate(mixed):
        own, other = targets[number], targets[number - 1]
        assert {
            name: torch.equal(target[name], torch.cat([own[name], other[name]]))
            for name in FIELDS
        } == dict.fromkeys(FIELDS, True)
        assert target["image_id"].tolist() == [number]


def test_mixup_leaves_a_single_image_and_its_boxes_alone():
    images, targets = batch(0, 1)
    mixed_images, mixed = mixed_up(images, targets)
    assert torch.equal(mixed_images, images) and mixed == targets


def test_targets_that_came_are_not_changed():
    images, targets = batch(0)
    counts = [len(target["boxes"]) for target in targets]
    mixed_up(images, targets)
    CopyBlend()(images, targets, FIELDS, np.random.default_rng(0))
    assert [len(target["boxes"]) for target in targets] == counts


# ---- CopyBlend ----


def copied(images, targets, seed: int = 0, **settings):
    images = images.clone()
    return images, CopyBlend(**settings)(
        images, targets, FIELDS, np.random.default_rng(seed)
    )


def added(before, after):
    """Yield (image number, object index, its box in pixels of the batch, box of the copy)."""
    origin = {
        int(index): box
        for target in before
        for index, box in zip(target["index"], corners(target["boxes"]))
    }
    for number, (old, new) in enumerate(zip(before, after)):
        boxes = corners(new["boxes"])
        for place in range(len(old["boxes"]), len(new["boxes"])):
            index = int(new["index"][place])
            yield number, index, origin[index], boxes[place]


def test_pasted_copy_shows_exactly_the_pixels_of_its_object_and_nothing_else_is_touched():
    for seed in range(30):
        before, targets = batch(seed)
        after, more = copied(before, targets, seed, kind="paste", num_objects=1)
        untouched = torch.ones_like(before, dtype=torch.bool)
        for number, index, origin, box in added(targets, more):
            assert torch.equal(
                after[number][window(box)], before[index // 10][window(origin)]
            )
            untouched[number][window(box)] = False
        assert torch.equal(after[untouched], before[untouched])


def test_blended_copy_is_about_half_of_its_object_and_half_of_what_lay_there():
    for seed in range(30):
        before, targets = batch(seed)
        after, more = copied(before, targets, seed, num_objects=1)
        for number, index, origin, box in added(targets, more):
            below, patch, seen = (
                before[number][window(box)],
                before[index // 10][window(origin)],
                after[number][window(box)],
            )
            weight = ((seen - below) * (patch - below)).sum() / (
                patch - below
            ).square().sum()
            assert BLEND_RANGE[0] - 1e-4 <= weight <= BLEND_RANGE[1] + 1e-4
            torch.testing.assert_close(
                seen, below.lerp(patch, weight), atol=1e-4, rtol=0
            )


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "paste"},
        {"kind": "blend"},
        {"kind": "paste", "with_expand": True},
    ],
    ids=str,
)
def test_boxes_of_copies_lie_on_their_pixels(settings):
    compared = 0
    for seed in range(20):
        before, targets = batch(seed)
        _, more = copied(before, targets, seed, num_objects=1, **settings)
        for number, index, _, box in added(targets, more):
            if (
                number != index // 10
            ):  # in its own image the object is seen twice
                seen, _ = copied(
                    *batch(seed, shown=index), seed, num_objects=1, **settings
                )
                assert (
                    abs(box - tight_box(seen[number, 0].numpy() > 0.22)).max()
                    < 1
                )
                compared += 1
    assert compared > 25


def test_every_image_gets_that_many_objects_of_all_images_none_twice():
    images, targets = batch(2)
    for seed in range(10):
        _, more = copied(images, targets, seed, num_objects=3)
        assert [
            len(new["boxes"]) - len(old["boxes"])
            for old, new in zip(targets, more)
        ] == [3, 3, 3]
        for old, new in zip(targets, more):
            copies = new["index"][len(old["index"]) :].tolist()
            assert len(set(copies)) == 3
    everything = {int(index) for target in targets for index in target["index"]}
    seen = {
        index
        for seed in range(40)
        for _, index, _, _ in added(targets, copied(images, targets, seed)[1])
    }
    assert seen == everything


def test_fewer_are_copied_where_there_are_not_so_many():
    images, targets = batch(0, 2)
    total = sum(len(target["boxes"]) for target in targets)
    _, more = copied(images, targets, num_objects=50)
    assert [len(target["boxes"]) for target in more] == [
        len(target["boxes"]) + total for target in targets
    ]


def test_small_objects_are_not_copied():
    images, targets = batch(0, 2)
    areas = {
        int(index): float(box[2:].prod()) * WIDTH * HEIGHT
        for target in targets
        for index, box in zip(target["index"], target["boxes"])
    }
    middle = float(np.mean(list(areas.values())))
    _, more = copied(images, targets, num_objects=50, area_threshold=middle)
    assert {index for _, index, _, _ in added(targets, more)} == {
        index for index, area in areas.items() if area > middle
    }


def test_copies_lie_anywhere_within_the_image():
    images, targets = batch(0)
    boxes = np.array(
        [
            box
            for seed in range(150)
            for _, index, _, box in added(
                targets, copied(images, targets, seed, num_objects=1)[1]
            )
            if index == 0
        ]
    )
    assert (
        boxes.min() > -1e-3
        and boxes[:, 2].max() < WIDTH + 1e-3
        and boxes[:, 3].max() < HEIGHT + 1e-3
    )
    assert (
        (boxes[:, :2].min(0) < 4).all()
        and boxes[:, 2].max() > WIDTH - 4
        and boxes[:, 3].max() > HEIGHT - 4
    )


def test_expanded_copy_shows_a_tenth_to_a_quarter_more_at_each_side():
    images, box = (
        torch.zeros(1, 3, 200, 200),
        torch.tensor([[0.5, 0.5, 0.2, 0.2]]),
    )
    target = {"boxes": box, "labels": torch.tensor([1])}
    sides = []
    for seed in range(100):
        seen = images.clone() + torch.arange(200) / 200
        before = seen.clone()
        CopyBlend("paste", num_objects=1, with_expand=True)(
            seen, [target], ("boxes", "labels"), np.random.default_rng(seed)
        )
        rows = (seen != before).any(1).any(2)[0].nonzero()
        sides.append(int(rows[-1] - rows[0]) + 1 if len(rows) else 50)
    assert (
        min(sides) >= 48,
        max(sides) <= 62,
        max(sides) - min(sides) > 8,
    ) == (
        True,
        True,
        True,
    )


def test_copied_objects_keep_their_fields():
    images, targets = batch(1)
    for target in targets:
        target["labels"] = target["index"] + 100
    _, more = copied(images, targets)
    assert all(
        torch.equal(target["labels"], target["index"] + 100) for target in more
    )


@pytest.mark.parametrize(
    "settings", [{}, {"with_expand": True}, {"kind": "paste"}], ids=str
)
def test_images_without_objects_go_through(settings):
    images, targets = empty_batch()
    after, more = copied(images, targets, **settings)
    assert torch.equal(after, images) and [
        target["boxes"].shape for target in more
    ] == [(0, 4), (0, 4)]
    assert [
        target["boxes"].shape for target in mixed_up(images, targets)[1]
    ] == [
        (0, 4),
        (0, 4),
    ]


def test_image_without_objects_is_given_those_of_others():
    images, targets = batch(0, 2)
    targets[0] = {
        name: values[:0] if isinstance(values, torch.Tensor) else values
        for name, values in targets[0].items()
    }
    _, more = copied(images, targets, num_objects=1)
    assert (len(more[0]["boxes"]), int(more[0]["index"][0]) // 10) == (1, 1)


def test_object_as_large_as_the_image_is_copied_onto_the_whole_of_it():
    images, targets = (
        torch.rand(2, 3, 20, 30),
        [
            {"boxes": torch.tensor([[0.5, 0.5, 1, 1]])},
            {"boxes": torch.zeros(0, 4)},
        ],
    )
    before = images.clone()
    more = CopyBlend("paste", with_expand=True)(
        images, targets, ("boxes",), np.random.default_rng(0)
    )
    assert torch.equal(images[1], before[0]) and more[1]["boxes"].tolist() == [
        [0.5, 0.5, 1, 1]
    ]


# ---- what can be mixed, and settings ----


@pytest.mark.parametrize(
    ("images", "box", "box_format", "found"),
    [
        (
            torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
            [0.5, 0.5, 1, 1],
            "cxcywh",
            "torch.uint8 and cxcywh up to 1",
        ),
        (
            torch.zeros(1, 3, 8, 8),
            [4, 4, 8, 8],
            "cxcywh",
            "torch.float32 and cxcywh up to 8",
        ),
        (
            torch.zeros(1, 3, 8, 8),
            [0, 0, 1, 1],
            "xyxy",
            "torch.float32 and xyxy up to 1",
        ),
    ],
)
def test_images_or_boxes_of_another_kind_are_refused(
    images, box, box_format, found
):
    with pytest.raises(ConfigError) as caught:
        check_mixable(images, [{"boxes": torch.tensor([box])}], box_format)
    assert str(caught.value) == (
        "mixup and CopyBlend take floating-point images and boxes as cxcywh in 0..1, "
        f"but got {found}; end the transforms with ConvertPILImage and ConvertBoxes "
        "(fmt: cxcywh, normalize: True)"
    )


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"kind": "cut"},
            "copyblend_type is 'cut', expected 'blend' or 'paste'",
        ),
        (
            {"area_threshold": 0},
            "area_threshold is 0, expected square pixels, more than 0",
        ),
        ({"num_objects": 0}, "num_objects is 0, expected at least 1"),
        (
            {"expand_ratios": [0.3, 0.1]},
            "expand_ratios is [0.3, 0.1], expected two numbers from 0, the smaller first",
        ),
        (
            {"expand_ratios": [0.1]},
            "expand_ratios is [0.1], expected two numbers from 0, the smaller first",
        ),
    ],
)
def test_setting_out_of_range_is_refused(settings, fault):
    with pytest.raises(ConfigError) as caught:
        CopyBlend(**settings)
    assert str(caught.value) == f"BatchImageCollateFunction.{fault}"
