"""Transforms move pixels and boxes together, and draw the same random numbers as torchvision."""

import numpy as np
import pytest
import torch
import torchvision.tv_tensors as tv
from torchvision.transforms import v2

from src.core.build import create
from src.core.errors import ConfigError
from src.data.transforms import (
    Compose,
    PadToSize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomZoomOut,
    Resize,
    Sample,
    SanitizeBoundingBoxes,
    geometric,
)
from tests.fixtures.samples import (
    drawn,
    filled,
    iou,
    plain_sample,
    rendered_mask,
    sample_of,
    tight_box,
)

# ---- boxes stay on their pixels ----

CHAINS = {
    "zoom-out": [RandomZoomOut(p=1)],
    "crop by overlap": [RandomIoUCrop(p=1)],
    "flip": [RandomHorizontalFlip(p=1)],
    "two flips": [RandomHorizontalFlip(p=1), RandomHorizontalFlip(p=1)],
    "cut": [RandomCrop([70, 90])],
    "cut that pads": [RandomCrop([150, 200])],
    "stretch": [Resize([96, 300])],
    "shrink": [Resize([64, 64])],
    "margin": [PadToSize([150, 200])],
    "margin that cuts": [PadToSize([90, 100])],
    "flip, then stretch": [RandomHorizontalFlip(p=1), Resize([200, 90])],
    "stretch, then flip": [Resize([200, 90]), RandomHorizontalFlip(p=1)],
    "training": [
        RandomPhotometricDistort(),
        RandomZoomOut(),
        RandomIoUCrop(p=0.8),
        SanitizeBoundingBoxes(1),
        RandomHorizontalFlip(),
        Resize([128, 128]),
        SanitizeBoundingBoxes(1),
    ],
    "everything": [
        RandomIoUCrop(p=1),
        RandomZoomOut(p=1),
        RandomHorizontalFlip(p=1),
        RandomIoUCrop(p=1),
        RandomHorizontalFlip(),
        Resize([160, 96]),
        PadToSize([180, 180]),
        RandomCrop([170, 170]),
        RandomHorizontalFlip(),
    ],
}
SCENES = 60


def transformed(name: str, size_hw=None, *, least_side: int = 16):
    """Yield (sample, drawn scene, rendered box, number of the object) for the boxes that are not tiny."""
    for seed in range(SCENES):
        scene = drawn(seed)
        sample = Compose(CHAINS[name])(sample_of(scene, seed))
        _, target = sample.render(size_hw)
        for box, index in zip(
            target["boxes"].numpy(), target["index"].tolist()
        ):
            if (box[2:] - box[:2]).min() >= least_side:
                yield sample, scene, box, index


@pytest.mark.parametrize(
    "size_hw", [None, (192, 160)], ids=["as it is", "another batch size"]
)
@pytest.mark.parametrize("name", CHAINS)
def test_edges_of_boxes_lie_within_a_pixel_of_the_edges_of_what_they_hold(
    name, size_hw
):
    compared = 0
    for sample, scene, box, index in transformed(name, size_hw):
        seen = tight_box(
            rendered_mask(
                sample,
                filled(scene.boxes[index], *scene.image.shape[1:]),
                size_hw,
            )
        )
        assert abs(box - seen).max() < 1
        compared += 1
    assert compared > 40


@pytest.mark.parametrize("name", CHAINS)
def test_boxes_lie_around_the_shapes_that_are_wholly_in_view(name):
    compared = 0
    for sample, scene, box, index in transformed(name, least_side=24):
        corners = np.sort(
            scene.boxes[index].reshape(2, 2) * sample.scale + sample.shift,
            axis=0,
        ).ravel()  # on a canvas without edges
        if (corners[:2] < sample.visible[:2]).any() or (
            corners[2:] > sample.visible[2:]
        ).any():
            continue
        assert (
            iou(
                box,
                np.array(
                    tight_box(rendered_mask(sample, scene.masks[index])), float
                ),
            )
            > 0.9
        )
        compared += 1
    assert compared >= 5


@pytest.mark.parametrize("name", CHAINS)
def test_drawing_in_whole_pixels_moves_boxes_by_half_a_pixel_of_the_picture_and_half_one_of_the_file(
    name,
):
    for seed in range(SCENES):
        sample = Compose(CHAINS[name])(sample_of(drawn(seed), seed))
        on_canvas = dict(zip(sample.fields["index"].tolist(), sample.boxes))
        _, target = sample.render()
        for box, index in zip(
            target["boxes"].numpy(), target["index"].tolist()
        ):
            assert (
                abs(box - on_canvas[index]).reshape(2, 2).max(0)
                <= 0.5 + 0.5 * abs(sample.scale) + 1e-3
            ).all()


@pytest.mark.parametrize("name", CHAINS)
def test_boxes_lie_within_the_image(name):
    for sample, _, box, _ in transformed(name):
        width, height = sample.canvas
        assert (box[:2] >= 0).all() and box[2] <= width and box[3] <= height


@pytest.mark.parametrize("name", CHAINS)
def test_fields_stay_with_their_boxes(name):
    for seed in range(SCENES):
        sample = Compose(CHAINS[name])(sample_of(drawn(seed), seed))
        _, target = sample.render()
        assert (
            len(target["boxes"])
            == len(target["index"])
            == len(target["labels"])
        )


@pytest.mark.parametrize("name", CHAINS)
def test_image_without_boxes_goes_through(name):
    sample = Compose(CHAINS[name])(plain_sample(60, 40))
    image, target = sample.render()
    assert (tuple(image.shape), target["boxes"].shape) == (
        (3, sample.canvas[1], sample.canvas[0]),
        (0, 4),
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (2000, 2)], ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_tiny_and_narrow_images_go_through(name, size):
    sample = Compose(CHAINS[name])(plain_sample(*size, [[0, 0, *size]]))
    image, target = sample.render((64, 64))
    assert tuple(image.shape) == (3, 64, 64)
    assert target["boxes"].isfinite().all()


# ---- single transforms ----


def origin_of(sample: Sample) -> tuple[tuple[int, ...], list[int]]:
    """Return (width, height) of a rendered plain sample, and the (x, y) of its first pixel in the file."""
    image, _ = sample.render()
    return (image.shape[2], image.shape[1]), image[:2, 0, 0].tolist()


def test_flip_mirrors_pixels_and_boxes():
    sample = plain_sample(10, 6, [[1, 2, 4, 5]])
    RandomHorizontalFlip(p=1)(sample)
    image, target = sample.render()
    assert image[0, 0].tolist() == list(range(9, -1, -1))
    assert (image[1, :, 0].tolist(), target["boxes"].tolist()) == (
        list(range(6)),
        [[6, 2, 9, 5]],
    )


def test_two_flips_change_nothing():
    sample, untouched = sample_of(drawn(0)), sample_of(drawn(0))
    for _ in range(2):
        RandomHorizontalFlip(p=1)(sample)
    assert torch.equal(sample.render()[0], untouched.render()[0])
    assert torch.equal(
        sample.render()[1]["boxes"], untouched.render()[1]["boxes"]
    )


@pytest.mark.parametrize("fill", [0, 114, 255])
def test_zoom_out_shows_the_fill_value_around_the_untouched_image(fill):
    sample = plain_sample(10, 6, [[1, 2, 4, 5]], seed=3)
    RandomZoomOut(fill=fill, side_range=[2, 2], p=1)(sample)
    image, target = sample.render()
    x, y = (target["boxes"][0, :2] - torch.tensor([1, 2])).int().tolist()
    assert tuple(image.shape) == (3, 12, 20)
    assert torch.equal(
        image[:, y : y + 6, x : x + 10], plain_sample(10, 6).image
    )
    outside = torch.ones(12, 20, dtype=torch.bool)
    outside[y : y + 6, x : x + 10] = False
    assert (image[:, outside] == fill).all()


def test_resize_equals_torchvisions_on_the_same_pixels():
    sample = sample_of(drawn(1))
    for size in ([64, 64], [100, 300], [640, 640]):
        sample = sample_of(drawn(1))
        Resize(size)(sample)
        expected = v2.functional.resize(drawn(1).image, size, antialias=True)
        assert abs(sample.render()[0].int() - expected.int()).max() <= 1


@pytest.mark.parametrize(
    ("size", "seen"), [([4, 5], (5, 4)), ([6, 10], (10, 6))]
)
def test_cut_has_its_size_and_shows_untouched_pixels(size, seen):
    sample = plain_sample(10, 6)
    RandomCrop(size)(sample)
    (width, height), (x, y) = origin_of(sample)
    assert (width, height) == seen
    assert torch.equal(
        sample.render()[0],
        plain_sample(10, 6).image[:, y : y + height, x : x + width],
    )


@pytest.mark.parametrize(
    "transform", [RandomCrop([9, 14], fill=7), PadToSize([9, 14], fill=7)]
)
def test_smaller_image_is_padded_at_the_right_and_the_bottom(transform):
    sample = plain_sample(10, 6, [[1, 2, 4, 5]])
    transform(sample)
    image, target = sample.render()
    assert torch.equal(image[:, :6, :10], plain_sample(10, 6).image)
    assert (image[:, 6:] == 7).all() and (image[:, :, 10:] == 7).all()
    assert target["boxes"].tolist() == [[1, 2, 4, 5]]


def test_margin_of_a_larger_image_is_a_cut():
    sample = plain_sample(10, 6, [[1, 2, 9, 5]])
    PadToSize([4, 5])(sample)
    image, target = sample.render()
    assert torch.equal(image, plain_sample(10, 6).image[:, :4, :5])
    assert target["boxes"].tolist() == [[1, 2, 5, 4]]


def test_cropping_by_overlap_drops_boxes_with_their_centre_outside():
    for seed in range(50):
        sample = plain_sample(
            200,
            150,
            [[20, 30, 80, 90], [100, 40, 180, 140], [5, 5, 30, 20]],
            seed,
        )
        centres = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
        RandomIoUCrop(p=1)(sample)
        (width, height), (x, y) = origin_of(sample)
        inside = ((centres > [x, y]) & (centres < [x + width, y + height])).all(
            1
        )
        assert (
            sample.fields["index"].tolist() == np.flatnonzero(inside).tolist()
        )
        assert inside.any()


def test_cropping_by_overlap_keeps_to_its_limits():
    for seed in range(50):
        sample = plain_sample(200, 150, [[20, 30, 80, 90]], seed)
        RandomIoUCrop(
            min_scale=0.4,
            max_scale=0.9,
            min_aspect_ratio=0.8,
            max_aspect_ratio=1.5,
            sampler_options=[0.0, 1.0],
            p=1,
        )(sample)
        width, height = sample.canvas
        if (width, height) != (200, 150):
            assert (
                0.4 * 200 - 1 <= width <= 0.9 * 200
                and 0.4 * 150 - 1 <= height <= 0.9 * 150
                and 0.8 <= width / height <= 1.5
            )


def test_crop_has_the_drawn_overlap_with_some_box():
    for seed in range(50):
        sample = plain_sample(
            200, 150, [[20, 30, 80, 90], [100, 40, 180, 140]], seed
        )
        before = sample.boxes.copy()
        RandomIoUCrop(sampler_options=[0.5, 1.0], p=1)(sample)
        (width, height), (x, y) = origin_of(sample)
        assert max(
            iou(box, np.array([x, y, x + width, y + height])) for box in before
        ) >= 0.5 or (
            width,
            height,
        ) == (200, 150)


def test_image_without_boxes_is_not_cropped_by_overlap():
    sample = plain_sample(200, 150)
    RandomIoUCrop(p=1)(sample)
    assert sample.canvas == (200, 150)


@pytest.mark.parametrize(
    ("min_size", "kept"), [(1, [0, 1]), (5, [0]), (50, [])]
)
def test_boxes_that_are_too_small_are_dropped(min_size, kept):
    sample = plain_sample(
        100, 100, [[10, 10, 40, 15], [10, 10, 11, 90], [50, 50, 50.5, 90]]
    )
    SanitizeBoundingBoxes(min_size)(sample)
    assert sample.fields["index"].tolist() == kept


def all_pairs(crops: np.ndarray, boxes: np.ndarray, min_iou: float):
    """Compare all crops with all boxes; return a mask of the suitable crops."""
    starts, ends = boxes[:, :2], boxes[:, 2:]
    low, high = crops[:, None, :2], crops[:, None, 2:]
    centres = (starts + ends) / 2
    inside = ((centres > low) & (centres < high)).all(2)
    sides = np.minimum(ends, high) - np.maximum(starts, low)
    overlap = sides.clip(0).prod(2)
    areas = (ends - starts).prod(1)
    crop_areas = (crops[:, 2:] - crops[:, :2]).prod(1)
    union = areas + crop_areas[:, None] - overlap
    return (inside & (overlap / union >= min_iou)).any(1)


def plainly_found_crop(crop: RandomIoUCrop, sample: Sample, min_iou: float):
    """Draw as `RandomIoUCrop` does, and compare all crops of a trial with all boxes at once."""
    size = np.array(sample.canvas)
    draws = sample.rng.random((crop.trials, 4))
    low, high = crop.scale
    sides = (size * (low + (high - low) * draws[:, :2])).astype(int)
    corner = ((size - sides) * draws[:, 2:]).astype(int)
    crops = np.concatenate([corner, corner + sides], 1).astype(float)
    aspect = sides[:, 0] / np.maximum(sides[:, 1], 1)
    fits = (sides > 0).all(1)
    fits &= (aspect >= crop.aspect[0]) & (aspect <= crop.aspect[1])
    fits &= all_pairs(crops, sample.boxes, min_iou)
    return crops[fits.argmax()] if fits.any() else None


@pytest.mark.parametrize("count", [1, 3, 40, 1000])
@pytest.mark.parametrize("longest", [20, 100, 300])
def test_crop_by_overlap_is_the_first_of_all_drawn_ones(
    monkeypatch, count, longest
):
    rng = np.random.default_rng([count, longest])
    crop = RandomIoUCrop(p=0.9)
    found = []
    for seed in range(40):
        corners = rng.uniform(0, 300, (count, 2)).round(seed % 3)
        sides = rng.uniform(0, longest, (count, 2)).round(seed % 3)
        boxes = np.concatenate([corners, corners + sides], 1).clip(0, 300)
        ours, plain = (
            plain_sample(300, 300, boxes.tolist(), seed) for _ in range(2)
        )
        crop(ours)
        with monkeypatch.context() as patch:
            patch.setattr(RandomIoUCrop, "_find_crop", plainly_found_crop)
            crop(plain)
        assert ours.canvas == plain.canvas
        assert np.array_equal(ours.shift, plain.shift)
        assert np.array_equal(ours.boxes, plain.boxes)
        assert ours.rng.random() == plain.rng.random()
        found.append(ours.canvas != (300, 300))
    assert any(found)


def test_crop_by_overlap_accepts_an_overlap_of_exactly_the_minimum():
    boxes = np.array([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 30.0, 30.0]])
    crops = np.array([[0.0, 0.0, 60.0, 60.0]])
    assert geometric._first_with_an_object(crops, boxes, 0.25) == 0
    assert geometric._first_with_an_object(crops, boxes, 0.2501) is None
    assert geometric._first_with_an_object(crops[:0], boxes, 0.0) is None


# ---- random state ----

BOXES = [[20.0, 30, 80, 90], [100, 40, 180, 140]]
DRAWS = 700


def look(image: torch.Tensor, boxes: torch.Tensor) -> list[float]:
    """Return changed or not, width, height, first pixel's origin, number of boxes, first box's corner."""
    height, width = image.shape[1:]
    first = boxes[0].tolist() if len(boxes) else [0, 0, 0, 0]
    return [
        float((height, width) != (150, 200)),
        width,
        height,
        float(image[0, 0, 0]),
        float(image[1, 0, 0]),
        float(image[0, 0, -1]),
        len(boxes),
        *first,
    ]


def drawn_by_torchvision(transform) -> np.ndarray:
    torch.manual_seed(0)
    image = tv.Image(plain_sample(200, 150).image)
    rows = []
    for _ in range(DRAWS):
        boxes = tv.BoundingBoxes(
            torch.tensor(BOXES), format="XYXY", canvas_size=(150, 200)
        )
        seen = v2.Compose(
            [
                transform,
                v2.SanitizeBoundingBoxes(min_size=1, labels_getter=None),
            ]
        )({"image": image, "boxes": boxes})
        rows.append(look(seen["image"], seen["boxes"]))
    return np.array(rows)


def drawn_by_us(transform) -> np.ndarray:
    rows = []
    for seed in range(DRAWS):
        sample = plain_sample(200, 150, BOXES, seed)
        transform(sample)
        image, target = sample.render()
        rows.append(look(image, target["boxes"]))
    return np.array(rows)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (RandomZoomOut(), v2.RandomZoomOut()),
        (
            RandomZoomOut(side_range=[1.5, 2], p=0.3),
            v2.RandomZoomOut(side_range=(1.5, 2), p=0.3),
        ),
        (RandomIoUCrop(), v2.RandomIoUCrop()),
        (RandomIoUCrop(p=0.8), v2.RandomApply([v2.RandomIoUCrop()], p=0.8)),
        (
            RandomIoUCrop(min_scale=0.5, sampler_options=[0.3, 1.0]),
            v2.RandomIoUCrop(min_scale=0.5, sampler_options=[0.3, 1.0]),
        ),
        (RandomHorizontalFlip(), v2.RandomHorizontalFlip()),
        (RandomHorizontalFlip(p=0.2), v2.RandomHorizontalFlip(p=0.2)),
        (RandomCrop([100, 120]), v2.RandomCrop([100, 120])),
    ],
    ids=[
        "zoom-out",
        "zoom-out with settings",
        "crop",
        "crop at times",
        "crop with settings",
        "flip",
        "flip with settings",
        "cut",
    ],
)
def test_mean_and_spread_of_what_comes_out_agree_with_torchvision(ours, theirs):
    """Each mean within four standard errors, each deviation within a fifth of the other."""
    a, b = drawn_by_us(ours), drawn_by_torchvision(theirs)
    error = np.sqrt(a.var(0) / DRAWS + b.var(0) / DRAWS)
    assert (abs(a.mean(0) - b.mean(0)) <= 4 * error + 1e-9).all()
    assert (
        abs(a.std(0) - b.std(0)) <= 0.2 * np.maximum(a.std(0), b.std(0))
    ).all()


@pytest.mark.parametrize(
    "transform",
    [RandomZoomOut(p=0), RandomIoUCrop(p=0), RandomHorizontalFlip(p=0)],
    ids=lambda t: type(t).__name__,
)
def test_probability_of_zero_changes_nothing(transform):
    sample = plain_sample(200, 150, BOXES)
    transform(sample)
    assert torch.equal(sample.render()[0], plain_sample(200, 150).image)


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (
            {"type": "RandomZoomOut", "side_range": [0.5, 2]},
            "RandomZoomOut.side_range is [0.5, 2], expected two numbers from 1, the smaller first",
        ),
        (
            {"type": "RandomZoomOut", "side_range": [3, 2]},
            "RandomZoomOut.side_range is [3, 2], expected two numbers from 1, the smaller first",
        ),
        (
            {"type": "RandomZoomOut", "side_range": [2]},
            "RandomZoomOut.side_range is [2], expected two numbers from 1, the smaller first",
        ),
        (
            {"type": "RandomZoomOut", "p": 1.5},
            "RandomZoomOut.p is 1.5, expected 0 to 1",
        ),
        (
            {"type": "RandomIoUCrop", "p": -0.1},
            "RandomIoUCrop.p is -0.1, expected 0 to 1",
        ),
        (
            {"type": "RandomIoUCrop", "min_scale": 0.0},
            "RandomIoUCrop: expected 0 < min_scale 0.0 <= max_scale 1.0 <= 1",
        ),
        (
            {"type": "RandomIoUCrop", "min_scale": 0.9, "max_scale": 0.5},
            "RandomIoUCrop: expected 0 < min_scale 0.9 <= max_scale 0.5 <= 1",
        ),
        (
            {"type": "RandomIoUCrop", "sampler_options": [0.1, 0.5]},
            (
                "RandomIoUCrop.sampler_options is [0.1, 0.5], "
                "expected a value of at least 1 among them, which ends the search"
            ),
        ),
        (
            {"type": "RandomHorizontalFlip", "p": 2},
            "RandomHorizontalFlip.p is 2, expected 0 to 1",
        ),
        (
            {"type": "Resize", "size": [640]},
            "Resize.size is [640], expected [height, width] in pixels",
        ),
        (
            {"type": "Resize", "size": [0, 640]},
            "Resize.size is [0, 640], expected [height, width] in pixels",
        ),
        (
            {"type": "RandomCrop", "size": [1, 2, 3]},
            "RandomCrop.size is [1, 2, 3], expected [height, width] in pixels",
        ),
        (
            {"type": "PadToSize", "size": [-1, 5]},
            "PadToSize.size is [-1, 5], expected [height, width] in pixels",
        ),
    ],
)
def test_setting_out_of_range_is_refused(settings, fault):
    with pytest.raises(ConfigError) as caught:
        create(settings)
    assert str(caught.value) == fault
