"""Four images on one canvas: boxes stay on their pixels, and only the first sample's generator is used."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from src.core.build import create
from src.core.errors import ConfigError
from src.data.transforms import (
    Compose,
    Mosaic,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomZoomOut,
    Resize,
    Sample,
)
from src.data.transforms.mosaic import MIN_VISIBLE, moved_boxes
from tests.fixtures.samples import (
    drawn,
    filled,
    iou,
    plain_sample,
    sample_of,
    tight_box,
)
from tests.fixtures.three_step_mosaic import warp

UNTOUCHED = {
    "rotation_range": 0,
    "translation_range": [0, 0],
    "scaling_range": [1, 1],
}
SIZES = ((160, 120), (200, 90), (120, 120))


def scene_of(number: int):
    return drawn(number, *SIZES[number % len(SIZES)])


def together(*samples: Sample) -> Sample:
    """Return the first sample, which knows the others."""
    others = iter(samples[1:])
    samples[0].draw_other = lambda rng: next(others)
    return samples[0]


def mosaic_of_scenes(
    seed: int, transform, shown: tuple[int, np.ndarray] | None = None
) -> Sample:
    """Return a mosaic of four scenes. `shown` puts (number of a scene, mask) in place of all pictures.

    The field `index` of a box is 10 times the scene's number and the object's number.
    """
    samples = []
    for number in range(4):
        sample = sample_of(scene_of(4 * seed + number), seed)
        sample.fields["index"] = sample.fields["index"] + 10 * number
        if shown is not None:
            mask = (
                torch.from_numpy(shown[1])
                if shown[0] == number
                else torch.zeros(sample.image.shape[1:])
            )
            sample.image = mask.to(torch.uint8).mul(255).expand(3, -1, -1)
        samples.append(sample)
    first = together(*samples)
    transform(first)
    return first


def boxes_and_masks(transform, seeds: int, mask_of):
    """Yield (mosaic, box, where the object's mask went) for boxes that are not tiny."""
    for seed in range(seeds):
        mosaic = mosaic_of_scenes(seed, transform)
        for box, index in zip(mosaic.boxes, mosaic.fields["index"].tolist()):
            if (box[2:] - box[:2]).min() >= 12:
                mask = mask_of(scene_of(4 * seed + index // 10), index % 10)
                yield (
                    mosaic,
                    box,
                    mosaic_of_scenes(seed, transform, (index // 10, mask))
                    .image[0]
                    .numpy()
                    > 127,
                )


# ---- boxes stay on their pixels ----


def test_edges_of_boxes_lie_within_a_pixel_and_a_half_of_the_edges_of_what_they_hold():
    compared = 0
    for _, box, seen in boxes_and_masks(
        Mosaic(150, rotation_range=0),
        16,
        lambda scene, k: filled(scene.boxes[k], *scene.image.shape[1:]),
    ):
        assert abs(box - tight_box(seen)).max() < 1.5
        compared += 1
    assert compared > 60


def test_boxes_lie_around_the_shapes_that_are_wholly_in_view():
    overlaps = []
    for mosaic, box, seen in boxes_and_masks(
        Mosaic(150, translation_range=[0, 0]),
        16,
        lambda scene, k: scene.masks[k],
    ):
        if box.min() > 0 and (box[2:] < mosaic.canvas).all():
            overlaps.append(iou(box, np.array(tight_box(seen), float)))
    assert len(overlaps) > 60
    assert np.mean(overlaps) > 0.9  # around turned corners it would be 0.8
    assert min(overlaps) > 0.6


def test_turned_box_is_tighter_than_the_one_around_its_corners():
    """Measured on synthetic shapes rotated by ten degrees."""
    turn = math.radians(10)
    matrix = np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    ours, corners = [], []
    for number in range(30):
        scene, centre = drawn(number, 160, 160), np.array([80, 80])
        shift = centre - matrix @ centre
        for mask, box in zip(scene.masks, scene.boxes):
            image = (
                torch.from_numpy(mask)
                .float()
                .mul(255)
                .expand(3, -1, -1)
                .clone()
            )
            seen = np.array(
                tight_box(warp(image, matrix, shift)[0].numpy() > 127), float
            )
            if seen.min() > 0 and seen.max() < 160:
                turned = (
                    box[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2) @ matrix.T
                    + shift
                )
                corners.append(
                    iou(np.concatenate([turned.min(0), turned.max(0)]), seen)
                )
                ours.append(
                    iou(
                        moved_boxes(box[None], matrix, shift, (160, 160))[0][0],
                        seen,
                    )
                )
    assert np.mean(ours) > np.mean(corners) + 0.08


@pytest.mark.parametrize(
    "later",
    [
        [],
        [
            RandomPhotometricDistort(p=1),
            RandomZoomOut(p=1),
            RandomIoUCrop(p=1),
            RandomHorizontalFlip(p=1),
            Resize([128, 128]),
        ],
    ],
)
def test_boxes_lie_within_the_image_and_fields_stay_with_them(later):
    for seed in range(20):
        _, target = mosaic_of_scenes(
            seed, Compose([Mosaic(80), *later])
        ).render()
        assert (
            len(target["boxes"])
            == len(target["index"])
            == len(target["labels"])
        )
        assert target["index"].unique().numel() == len(target["index"])
        assert (
            target["boxes"][:, 2:] > target["boxes"][:, :2]
        ).all() and target["boxes"].min() >= 0


def test_boxes_of_which_too_little_stays_are_dropped_with_their_fields():
    sample = together(
        *(
            plain_sample(100, 100, [[0, 0, 20, 20], [40, 40, 60, 60]], seed)
            for seed in range(4)
        )
    )
    sample.rng = np.random.default_rng(0)
    Mosaic(
        100,
        rotation_range=0,
        translation_range=[0, 0],
        scaling_range=[1.5, 1.5],
    )(sample)
    assert (
        sample.fields["index"].tolist()
        == [
            1,
            1,
            1,
            0,
            1,
        ]
    )  # of the fourth image the first object lies at the centre; the others' are cut off
    areas = (sample.boxes[:, 2:] - sample.boxes[:, :2]).prod(1)
    assert (areas >= MIN_VISIBLE * 30 * 30).all()


# ---- the map ----


def test_box_that_is_moved_and_scaled_alone_is_exact():
    boxes, visible = moved_boxes(
        np.array([[10.0, 20, 30, 50], [90, 90, 100, 100]]),
        2 * np.eye(2),
        np.array([-10.0, 5]),
        (100, 100),
    )
    assert (boxes.tolist(), visible.tolist()) == (
        [[10, 45, 50, 100], [100, 100, 100, 100]],
        [pytest.approx(55 / 60), 0],
    )


def test_quarter_turn_swaps_the_sides_of_a_box():
    quarter = np.array([[0.0, -1], [1, 0]])
    boxes, visible = moved_boxes(
        np.array([[10.0, 20, 30, 80]]),
        quarter,
        np.array([100.0, 0]),
        (100, 100),
    )
    assert (boxes.tolist(), visible.tolist()) == ([[20, 10, 80, 30]], [1])


@pytest.mark.parametrize("turn", [0.1, 0.7, 2.0])
def test_box_of_a_disc_keeps_its_size_however_it_is_turned(turn):
    matrix = np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    boxes, _ = moved_boxes(
        np.array([[40.0, 40, 60, 60]]),
        matrix,
        np.array([50, 50]) - matrix @ [50, 50],
        (100, 100),
    )
    assert boxes == pytest.approx(np.array([[40, 40, 60, 60]]))


def test_draws_fill_their_ranges_and_keep_to_them():
    mosaic, rng = (
        Mosaic(
            rotation_range=10,
            translation_range=[0.1, 0.2],
            scaling_range=[0.5, 1.5],
        ),
        np.random.default_rng(0),
    )
    centre, rows = np.array([200, 100]), []
    for _ in range(2000):
        matrix, shift = mosaic._draw(rng, 400, 200)
        rows.append(
            [
                np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])),
                np.sqrt(np.linalg.det(matrix)),
                *(matrix @ centre + shift - centre),
            ]
        )
    assert np.min(rows, 0) == pytest.approx([-10, 0.5, -40, -40], rel=0.03)
    assert np.max(rows, 0) == pytest.approx([10, 1.5, 40, 40], rel=0.03)


# ---- the canvas ----


def test_four_images_stand_at_their_corners_with_their_shorter_side_at_the_size():
    scenes = [drawn(0), drawn(1, 200, 90), drawn(2, 120, 120), drawn(3)]
    sample = together(*(sample_of(scene) for scene in scenes))
    Mosaic(60, **UNTOUCHED)(sample)
    assert sample.canvas == (2 * 133, 2 * 60)
    for scene, (x, y), width in zip(
        scenes, ((0, 0), (133, 0), (0, 60), (133, 60)), (80, 133, 60, 80)
    ):
        expected = v2.functional.resize(
            scene.image, [60, width], antialias=True
        )
        assert (
            abs(
                sample.image[:, y : y + 60, x : x + width].int()
                - expected.int()
            ).max()
            <= 1
        )


def test_fill_value_stands_between_and_around_the_images():
    sample = together(*(plain_sample(width, 40) for width in (40, 80, 40, 80)))
    Mosaic(40, **(UNTOUCHED | {"scaling_range": [0.5, 0.5]}), fill_value=114)(
        sample
    )
    assert (
        sample.image[:, :, 62:78] == 114
    ).all()  # right of the first and third image, halved around the middle of 160 columns
    assert (sample.image[:, :19] == 114).all() and (
        sample.image[:, -19:] == 114
    ).all()


def test_narrow_image_is_shrunk_further_so_that_the_canvas_stays_small():
    sample = together(
        plain_sample(1, 5000, [[0, 0, 1, 5000]]),
        *(plain_sample(40, 30) for _ in range(3)),
    )
    Mosaic(32, **UNTOUCHED)(sample)
    assert sample.canvas == (2 * 43, 2 * 128)
    assert sample.boxes.tolist() == [[0, 0, 1, 128]]


@pytest.mark.parametrize("seed", range(5))
def test_images_without_objects_go_through(seed):
    sample = together(*(plain_sample(60, 40) for _ in range(4)))
    sample.rng = np.random.default_rng(seed)
    Mosaic(32)(sample)
    assert (
        sample.boxes.shape,
        sample.fields["index"].shape,
        sample.image.dtype,
    ) == (
        (0, 4),
        (0,),
        torch.uint8,
    )


def test_boxes_of_the_others_are_kept_where_the_first_has_none():
    sample = together(
        plain_sample(40, 40),
        *(plain_sample(40, 40, [[10, 10, 20, 20]]) for _ in range(3)),
    )
    Mosaic(40, **UNTOUCHED)(sample)
    assert sample.boxes.tolist() == [
        [50, 10, 60, 20],
        [10, 50, 20, 60],
        [50, 50, 60, 60],
    ]


# ---- the sample ----


def test_what_belongs_to_the_image_is_that_of_the_first():
    sample = together(*(plain_sample(40, 40) for _ in range(4)))
    sample.info = {"image_id": torch.tensor([7])}
    Mosaic(32)(sample)
    assert (sample.render()[1]["image_id"].item(), sample.is_mosaic) == (
        7,
        True,
    )


def test_images_of_the_files_are_left_as_they_were():
    scene = drawn(0)
    before = scene.image.clone()
    Mosaic(80)(together(*(sample_of(scene) for _ in range(4))))
    assert torch.equal(scene.image, before)


def test_same_random_state_gives_the_same_mosaic():
    first, second = (mosaic_of_scenes(3, Mosaic(60)) for _ in range(2))
    assert torch.equal(first.image, second.image) and np.array_equal(
        first.boxes, second.boxes
    )


def test_sample_without_mosaic_keeps_its_pixels_and_decodes_no_others():
    sample = sample_of(drawn(0))
    Mosaic(probability=0)(sample)
    assert (torch.equal(sample.image, drawn(0).image), sample.is_mosaic) == (
        True,
        False,
    )


# ---- settings ----


def test_mosaic_takes_the_settings_of_deims_files_and_logs_which_have_no_effect(
    caplog,
):
    caplog.set_level("INFO", "dfine")
    made = create(
        {
            "type": "Mosaic",
            "output_size": 320,
            "rotation_range": 10,
            "translation_range": [0.1, 0.1],
            "scaling_range": [0.5, 1.5],
            "probability": 1.0,
            "fill_value": 0,
            "use_cache": False,
            "max_cached_images": 50,
            "random_pop": True,
        }
    )
    assert isinstance(made, Mosaic)
    assert [record.message for record in caplog.records] == [
        "Mosaic has no cache, so these settings have no effect: max_cached_images, random_pop"
    ]


def test_data_set_without_draw_other_is_refused():
    with pytest.raises(
        ConfigError,
        match="^Mosaic needs other images, but the data set's samples have no `draw_other`; "
        "set it as CocoDetection does$",
    ):
        Mosaic()(plain_sample(40, 40))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"use_cache": True},
            (
                "use_cache is true, which is not supported: "
                "the other images are decoded each time, "
                "so that a run is reproducible; set it to False"
            ),
        ),
        ({"output_size": 0}, "output_size is 0, expected a number of pixels"),
        (
            {"rotation_range": -1},
            "rotation_range is -1, expected 0 to 180 degrees",
        ),
        (
            {"translation_range": [0.1]},
            "translation_range is [0.1], expected two numbers from 0 to 1",
        ),
        (
            {"translation_range": [0.1, 2]},
            "translation_range is [0.1, 2], expected two numbers from 0 to 1",
        ),
        (
            {"scaling_range": [0, 1]},
            "scaling_range is [0, 1], expected two numbers above 0, the smaller first",
        ),
        (
            {"scaling_range": [1.5, 0.5]},
            "scaling_range is [1.5, 0.5], expected two numbers above 0, the smaller first",
        ),
        ({"probability": 1.5}, "probability is 1.5, expected 0 to 1"),
    ],
)
def test_setting_out_of_range_is_refused(settings, fault):
    with pytest.raises(ConfigError) as caught:
        create({"type": "Mosaic", **settings})
    assert str(caught.value) == f"Mosaic.{fault}"
