"""Several images on one canvas: they are drawn as the three-step mosaic drew them, with fewer resamplings."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from src.data.transforms import (
    Compose,
    ConvertBoxes,
    ConvertPILImage,
    Mosaic,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomPhotometricDistort,
    RandomZoomOut,
    Resize,
    Sample,
    SanitizeBoundingBoxes,
)
from src.data.transforms.layers import Layer, Layers
from src.data.transforms.photometric import mean_rgb
from tests.fixtures.samples import drawn, sample_of
from tests.fixtures.three_step_mosaic import ThreeStepMosaic

SIZES = ((160, 120), (200, 90), (120, 120), (90, 200))


def smooth(number: int, width: int, height: int) -> torch.Tensor:
    """Return an image without fine structure, `[3, height, width]` uint8."""
    generator = torch.Generator().manual_seed(number)
    coarse = 40 + 180 * torch.rand(1, 3, 6, 6, generator=generator)
    image = F.interpolate(coarse, (height, width), mode="bicubic")
    return image[0].clamp(0, 255).to(torch.uint8)


def first_of_four(seed: int, is_smooth: bool = False) -> Sample:
    """Return a sample that draws three others with its random generator."""

    def one(rng: np.random.Generator) -> Sample:
        number = int(rng.integers(1000))
        width, height = SIZES[number % len(SIZES)]
        sample = sample_of(drawn(number, width, height), seed)
        sample.rng = rng
        if is_smooth:
            sample.image = smooth(number, width, height)
        sample.draw_other = one
        return sample

    return one(np.random.default_rng(seed))


def transforms(mosaic: Mosaic, *, colours: bool = True) -> Compose:
    ops = [
        RandomHorizontalFlip(),
        RandomZoomOut(),
        SanitizeBoundingBoxes(),
        Resize([128, 128]),
        ConvertBoxes("cxcywh", True),
    ]
    if colours:
        ops.insert(0, RandomPhotometricDistort())
    return Compose([mosaic, *ops])


def view(layers: Layers, matrix, shift=(0.0, 0.0), fill=0.0) -> Layers:
    return Layers(
        layers, (160, 120), np.array(matrix, float), np.array(shift), fill
    )


# ---- the same distribution ----


@pytest.mark.parametrize("seed", range(12))
def test_boxes_and_random_draws_are_those_of_three_steps(seed):
    targets, states = [], []
    for mosaic in (Mosaic(60), ThreeStepMosaic(60)):
        sample = transforms(mosaic)(first_of_four(seed))
        targets.append(sample.render((96, 128))[1])
        states.append(sample.rng.bit_generator.state)
    ours, reference = targets
    assert states[0] == states[1]
    assert ours.keys() == reference.keys()
    assert ours["boxes_read"] == reference["boxes_read"]
    assert ours["boxes_lost"] == reference["boxes_lost"]
    for name in ("labels", "index"):
        assert torch.equal(ours[name], reference[name])
    torch.testing.assert_close(
        ours["boxes"], reference["boxes"], atol=1e-6, rtol=0
    )


def differences(seeds, is_smooth: bool, size=(128, 128), fill=0.0):
    for seed in seeds:
        images = []
        for mosaic in (
            Mosaic(60, fill_value=fill),
            ThreeStepMosaic(60, fill_value=fill),
        ):
            ops = transforms(mosaic, colours=False)
            sample = ops(first_of_four(seed, is_smooth))
            images.append(sample.render(size)[0].float())
        yield (images[0] - images[1]).abs()


@pytest.mark.parametrize("size", [(96, 96), (128, 128), (160, 192)], ids=str)
def test_pixels_differ_by_a_grey_level_from_three_steps_on_smooth_images(size):
    for difference in differences(range(6), True, size, fill=114.0):
        assert difference.mean() < 1.0
        assert np.quantile(difference.numpy(), 0.95) < 4


def test_pixels_differ_little_from_three_steps_on_shapes_with_sharp_edges():
    means = [float(d.mean()) for d in differences(range(12), False)]
    assert np.mean(means) < 3


def ideal(layers: Layers, times: int = 4) -> torch.Tensor:
    """Sample the nearest pixel at `times` x `times` points of each pixel of the canvas, and reduce that with
    the antialiased kernel that resizes files.
    """
    width, height = layers.size
    y, x = torch.meshgrid(
        (torch.arange(height * times) + 0.5) / times,
        (torch.arange(width * times) + 0.5) / times,
        indexing="ij",
    )
    points = torch.stack([x, y], -1).double().numpy()
    flat = (points - layers.shift) @ np.linalg.inv(layers.matrix).T
    fine = torch.full((3, *x.shape), float(layers.fill))
    for image, scale, corner in layers.layers:
        at = np.floor((flat - corner) / scale).astype(int)
        h, w = image.shape[1:]
        inside = ((at >= 0) & (at < (w, h))).all(-1)
        fine[:, inside] = image[:, at[inside][:, 1], at[inside][:, 0]].float()
    return F.interpolate(
        fine[None], (height, width), mode="bilinear", antialias=True
    )[0]


@pytest.mark.parametrize("scaling", [0.4, 0.8, 1.3])
@pytest.mark.parametrize("is_smooth", [True, False])
def test_pixels_are_as_close_to_the_ideal_as_those_of_three_steps(
    scaling, is_smooth
):
    errors = {}
    for kind in (Mosaic, ThreeStepMosaic):
        total = 0.0
        for seed in range(4):
            mosaic = kind(60, scaling_range=[scaling, scaling])
            sample = first_of_four(seed, is_smooth)
            mosaic(sample)
            exact = first_of_four(seed, is_smooth)
            Mosaic(60, scaling_range=[scaling, scaling])(exact)
            difference = sample.image.float() - ideal(exact.source)
            total += float(difference.abs().mean())
        errors[kind] = total
    assert errors[Mosaic] <= 1.15 * errors[ThreeStepMosaic]


# ---- the map ----


@pytest.mark.parametrize(
    ("angle", "translate", "scale"),
    [
        (0, [0, 0], 1.0),
        (10, [0, 0], 1.0),
        (-7, [12, -5], 0.6),
        (4, [-20, 3], 1.4),
        (100, [0, 0], 1.0),
    ],
)
def test_pixels_are_moved_as_torchvision_moves_them(angle, translate, scale):
    image = smooth(0, 160, 120)
    centre = np.array([80, 60])
    turn = math.radians(angle)
    matrix = scale * np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    shift = centre - matrix @ centre + translate
    layers = view([Layer(image, (1.0, 1.0), (0.0, 0.0))], matrix, shift)
    ours = layers.draw((0, 0, 160, 120), (120, 160))
    theirs = v2.functional.affine(
        image.float(),
        angle,
        translate,
        scale,
        [0, 0],
        interpolation=v2.InterpolationMode.BILINEAR,
        fill=[0.0, 0.0, 0.0],
    )
    inside = v2.functional.affine(
        torch.ones_like(image), angle, translate, scale, [0, 0]
    )
    # how the edge fades into the fill value is torchvision's own
    inside = F.avg_pool2d(inside.float(), 5, 1, 2) == 1
    assert (ours - theirs).abs()[inside].max() <= 3


def test_canvas_that_is_not_moved_shows_its_images_unchanged():
    left, right = smooth(0, 80, 120), smooth(1, 80, 120)
    layers = view(
        [Layer(left, (1.0, 1.0), (0.0, 0.0)), Layer(right, (1, 1), (80, 0))],
        np.eye(2),
    )
    torch.testing.assert_close(
        layers.whole(), torch.cat([left, right], 2), atol=1, rtol=0
    )


def test_part_of_the_canvas_is_drawn_as_in_the_whole():
    layers = first_of_four(3, True)
    Mosaic(60)(layers)
    source = layers.source
    width, height = source.size
    whole = source.draw((0, 0, width, height), (height, width))
    part = source.draw((30, 20, 90, 100), (80, 60))
    assert (whole[:, 20:100, 30:90] - part).abs().mean() < 0.5


def test_bands_do_not_show_at_their_edges(monkeypatch):
    sample = first_of_four(4)
    Mosaic(100)(sample)
    expected = sample.image
    monkeypatch.setattr("src.data.transforms.layers.BAND", 7)
    assert (sample.image.int() - expected.int()).abs().max() <= 1


def test_mirrored_mosaic_is_the_mosaic_mirrored():
    images = []
    for flips in ([], [RandomHorizontalFlip(1.0)]):
        sample = first_of_four(5, True)
        Compose([Mosaic(60), *flips])(sample)
        images.append(sample.render()[0].float())
    assert (images[0].flip(2) - images[1]).abs().mean() < 0.3


@pytest.mark.parametrize("fill", [0.0, 114.0])
def test_image_outside_the_view_shows_the_fill_value_alone(fill):
    layers = view(
        [Layer(smooth(0, 20, 20), (1.0, 1.0), (0.0, 0.0))],
        np.eye(2),
        (500.0, 0.0),
        fill,
    )
    assert (layers.draw((0, 0, 160, 120), (60, 80)) == fill).all()


@pytest.mark.parametrize("width", [1, 2, 5000])
def test_narrow_image_is_drawn(width):
    image = torch.full((3, 7, width), 200, dtype=torch.uint8)
    layers = view([Layer(image, (160 / width, 120 / 7), (0.0, 0.0))], np.eye(2))
    drawn_ = layers.draw((0, 0, 160, 120), (40, 60))
    assert (drawn_[:, 2:-2, 2:-2] - 200).abs().max() < 1e-3


# ---- colours and types ----


def test_mean_colour_is_that_of_the_drawn_canvas():
    for seed in range(6):
        sample = first_of_four(seed, True)
        Mosaic(100, fill_value=30)(sample)
        expected = sample.image.float().mean((1, 2)).numpy()
        assert mean_rgb(sample) == pytest.approx(expected, abs=2.5)


def test_floats_and_8_bit_values_agree():
    images = []
    for later in ([], [ConvertPILImage(scale=False)]):
        sample = first_of_four(7)
        Compose([Mosaic(60), *later])(sample)
        images.append(sample.render((100, 140))[0].float())
    assert (images[0] - images[1]).abs().max() <= 0.5


@pytest.mark.parametrize("later", [[], [RandomPhotometricDistort(p=1)]])
def test_mosaic_is_written_to_the_given_place(later):
    batch = torch.zeros(3, 3, 64, 96)
    sample = first_of_four(8)
    Compose([Mosaic(60), *later, ConvertPILImage()])(sample)
    sample.render((64, 96), batch[1])
    assert batch[0].max() == batch[2].max() == 0
    assert 0 <= batch[1].min() < batch[1].max() <= 1


def test_crop_of_a_mosaic_shows_its_part():
    sample = first_of_four(9, True)
    Mosaic(60)(sample)
    whole = sample.image.float()
    sample.move((1, 1), (-25, -15), (70, 60))
    part = sample.render()[0].float()
    assert (whole[:, 15:75, 25:95] - part).abs().mean() < 0.8


def test_iou_crop_can_follow_a_mosaic_by_hand():
    sample = first_of_four(10)
    Mosaic(60)(sample)
    RandomIoUCrop(p=1)(sample)
    image, target = sample.render((64, 64))
    assert image.shape == (3, 64, 64)
    assert (target["boxes"] >= 0).all() and (target["boxes"] <= 64).all()
