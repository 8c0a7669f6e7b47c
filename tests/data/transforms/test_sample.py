"""An image on its way through the transforms, and how it is drawn in the end."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from src.data.transforms import (
    ConvertBoxes,
    ConvertPILImage,
    Normalize,
    RandomHorizontalFlip,
    RandomZoomOut,
    Resize,
)
from tests.fixtures.samples import drawn, plain_sample, sample_of


def test_untouched_sample_gives_the_pixels_of_the_file():
    sample = sample_of(drawn(0))
    image, target = sample.render()
    assert torch.equal(image, drawn(0).image)
    assert np.allclose(target["boxes"], drawn(0).boxes)


@pytest.mark.parametrize(
    "size", [(48, 80), (120, 160), (300, 90), (640, 640)], ids=str
)
def test_drawing_at_another_size_is_torchvisions_resize(size):
    expected = v2.functional.resize(drawn(0).image, list(size), antialias=True)
    assert (
        abs(sample_of(drawn(0)).render(size)[0].int() - expected.int()).max()
        <= 1
    )


@pytest.mark.parametrize("size", [(48, 80), (640, 640)], ids=str)
def test_drawing_at_another_size_is_pillows_resize_within_rounding(size):
    expected = Image.fromarray(drawn(0).image.permute(1, 2, 0).numpy()).resize(
        size[::-1], Image.Resampling.BILINEAR
    )
    assert (
        abs(
            sample_of(drawn(0)).render(size)[0].permute(1, 2, 0).int()
            - torch.from_numpy(np.array(expected)).int()
        ).max()
        <= 1
    )


def test_pixels_are_resampled_once_however_many_transforms_there_were():
    twice, once = sample_of(drawn(0)), sample_of(drawn(0))
    Resize([30, 40])(twice)
    Resize([120, 160])(twice)
    assert torch.equal(twice.render()[0], once.render()[0])


def test_boxes_follow_another_size():
    _, target = plain_sample(100, 50, [[10, 10, 30, 40]]).render((100, 400))
    assert target["boxes"].tolist() == [[40, 20, 120, 80]]


def test_image_is_written_to_the_given_path():
    out = torch.zeros(2, 3, 30, 40, dtype=torch.uint8)
    image, _ = sample_of(drawn(0)).render((30, 40), out[1])
    assert image.data_ptr() == out[1].data_ptr()
    assert out[0].max() == 0 and torch.equal(
        out[1], sample_of(drawn(0)).render((30, 40))[0]
    )


def test_margin_of_an_image_written_elsewhere_is_filled():
    out = torch.full((3, 12, 20), 200, dtype=torch.uint8)
    sample = plain_sample(10, 6)
    RandomZoomOut(fill=7, side_range=[2, 2], p=1)(sample)
    sample.render(out=out)
    assert (out != 200).all()


def test_drawing_twice_gives_the_same():
    sample = sample_of(drawn(0))
    Resize([50, 50])(sample)
    assert torch.equal(sample.render()[0], sample.render()[0])


def test_image_of_the_file_is_unchanged():
    sample, before = sample_of(drawn(0)), drawn(0).image.clone()
    RandomHorizontalFlip(p=1)(sample)
    ConvertPILImage()(sample)
    sample.render((60, 60))
    assert torch.equal(sample.image, before)


# ---- what comes out ----


def test_floats_are_the_8_bit_values_over_255():
    sample = sample_of(drawn(0))
    ConvertPILImage()(sample)
    torch.testing.assert_close(sample.render()[0], drawn(0).image.float() / 255)


def test_floats_may_stay_in_0_to_255():
    sample = sample_of(drawn(0))
    ConvertPILImage(scale=False)(sample)
    assert torch.equal(sample.render()[0], drawn(0).image.float())


@pytest.mark.parametrize(("scale", "fill"), [(True, 114 / 255), (False, 114.0)])
def test_fill_value_is_scaled_with_the_image(scale, fill):
    sample = plain_sample(10, 6)
    RandomZoomOut(fill=114, side_range=[4, 4], p=1)(sample)
    ConvertPILImage(scale=scale)(sample)
    assert (
        torch.isclose(sample.render()[0], torch.tensor(fill)).all(0).sum()
        == 24 * 40 - 6 * 10
    )


def test_normalised_image_has_its_mean_taken_off():
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    sample = sample_of(drawn(0))
    ConvertPILImage()(sample)
    Normalize(mean, std)(sample)
    torch.testing.assert_close(
        sample.render()[0],
        v2.functional.normalize(drawn(0).image.float() / 255, mean, std),
    )


def test_normalising_alone_gives_floats():
    sample = plain_sample(4, 4)
    Normalize([1, 2, 255], [1, 1, 5])(sample)
    image, _ = sample.render()
    assert image[:, 0, 3].tolist() == [2, -2, 0]


@pytest.mark.parametrize(
    ("fmt", "normalize", "box"),
    [
        ("", False, [10, 10, 30, 40]),
        ("xyxy", False, [10, 10, 30, 40]),
        ("cxcywh", False, [20, 25, 20, 30]),
        ("xyxy", True, [0.1, 0.2, 0.3, 0.8]),
        ("cxcywh", True, [0.2, 0.5, 0.2, 0.6]),
    ],
)
def test_boxes_have_the_requested_format(fmt, normalize, box):
    sample = plain_sample(100, 50, [[10, 10, 30, 40]])
    ConvertBoxes(fmt, normalize)(sample)
    assert sample.render()[1]["boxes"][0].tolist() == pytest.approx(box)


def test_relative_boxes_do_not_depend_on_the_size_of_the_batch():
    boxes = []
    for size in ((64, 64), (96, 64)):
        sample = plain_sample(100, 50, [[10, 10, 30, 40]])
        ConvertBoxes("cxcywh", True)(sample)
        boxes.append(sample.render(size)[1]["boxes"])
    torch.testing.assert_close(*boxes)


def test_box_that_was_cut_away_is_dropped_with_its_fields():
    sample = plain_sample(100, 50, [[80, 10, 90, 40], [10, 10, 30, 40]])
    sample.move((1, 1), (0, 0), (50, 50))
    _, target = sample.render()
    assert (target["boxes"].tolist(), target["index"].tolist()) == (
        [[10, 10, 30, 40]],
        [1],
    )


def test_window_beside_the_image_shows_the_fill_value_alone():
    sample = plain_sample(10, 10, [[1, 1, 5, 5]])
    sample.fill = 9.0
    sample.move((1, 1), (20, 20), (10, 10))
    image, target = sample.render()
    assert ((image == 9).all().item(), target["boxes"].shape) == (True, (0, 4))


def test_what_belongs_to_the_image_is_handed_on():
    sample = plain_sample(4, 4)
    sample.info = {"image_id": torch.tensor([7]), "image_path": "a.png"}
    _, target = sample.render()
    assert (target["image_id"].item(), target["image_path"]) == (7, "a.png")
