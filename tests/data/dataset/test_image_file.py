"""Images are decoded when their size is known, and cached, without a change of what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.core.errors import ConfigError, DataError
from src.data.collate import BatchImageCollateFunction
from src.data.dataloader import DataLoader
from src.data.dataset import image_policy
from src.data.dataset.coco_dataset import CocoDetection
from src.data.dataset.detection_dataset import DetectionDataset
from src.data.dataset.image_file import ImageFile
from src.data.dataset.synthetic import draw_scene
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
    SanitizeBoundingBoxes,
)
from tests.fixtures.coco_files import sound_coco

SIZE = (640, 480)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with eight photos, of which the last is stored on its side, and their labels."""
    folder = tmp_path_factory.mktemp("photos")
    content = sound_coco(8, SIZE)
    for index, record in enumerate(content["images"]):
        record["file_name"] = f"{index}.jpg"
        rng = np.random.default_rng(index)
        scene = draw_scene(rng, SIZE[0], 5).image[: SIZE[1]]
        image = Image.fromarray(scene)
        tags = Image.Exif()
        if index == 7:
            image = image.transpose(Image.Transpose.ROTATE_90)
            tags[0x0112] = 6
        image.save(folder / record["file_name"], quality=90, exif=tags)
    for record in content["annotations"]:
        x, y, _, _ = record["bbox"]
        record["bbox"] = [10 * x, 10 * y, 90.0, 120.0]
        record["area"] = 90.0 * 120.0
    (folder / "labels.json").write_text(json.dumps(content))
    return folder


def training(side: int = 96, mosaic: float = 0.0) -> Compose:
    """Return the transforms of a training."""
    ops = [
        RandomPhotometricDistort(p=0.8),
        RandomZoomOut(),
        RandomIoUCrop(p=0.8),
        SanitizeBoundingBoxes(),
        RandomHorizontalFlip(),
        Resize([side, side]),
        SanitizeBoundingBoxes(),
        ConvertPILImage(),
        ConvertBoxes("cxcywh", normalize=True),
    ]
    if mosaic:
        ops.insert(0, Mosaic(side // 2))
    return Compose(ops, mosaic_prob=mosaic or 1.0)


def data_of(folder: Path, transforms: Compose, **settings) -> CocoDetection:
    return CocoDetection(
        str(folder), str(folder / "labels.json"), transforms, **settings
    )


def batches(data: CocoDetection, epochs: int = 2, workers: int = 0) -> list:
    """Return all batches of some epochs."""
    collate = BatchImageCollateFunction(base_size=96, base_size_repeat=2)
    loader = DataLoader(
        data, collate, batch_size=4, shuffle=True, num_workers=workers
    )
    loader.set_seed(5)
    found = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def assert_equal(ours: list, theirs: list) -> None:
    """Check that two lists of batches are equal in all bits."""
    assert len(ours) == len(theirs)
    for (images, targets), (others, other_targets) in zip(ours, theirs):
        assert torch.equal(images, others)
        for target, other in zip(targets, other_targets):
            assert target.keys() == other.keys()
            for key, value in target.items():
                if isinstance(value, torch.Tensor):
                    assert torch.equal(value, other[key]), key
                else:
                    assert value == other[key]


class DecodedFirst(CocoDetection):
    """The data set that decodes each image before the transforms."""

    sample = DetectionDataset.sample
    random_sample = DetectionDataset.random_sample


@pytest.fixture
def reductions(monkeypatch):
    """Return a list that gets the reduction of each image that is decoded."""
    found = []
    inspect = image_policy.inspect_reduced

    def noted(*arguments, **settings):
        found.append(settings["reduction"])
        return inspect(*arguments, **settings)

    monkeypatch.setattr(image_policy, "inspect_reduced", noted)
    return found


def damage(folder: Path, tmp_path: Path, *names: str) -> Path:
    """Copy the photos, and cut some of them in half."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        raw = file.read_bytes()
        if file.name in names:
            raw = raw[: len(raw) // 2]
        (copy / file.name).write_bytes(raw)
    return copy


# ---- decoded late ----


@pytest.mark.parametrize("mosaic", [0.0, 0.5])
@pytest.mark.parametrize("bad", [(), ("0.jpg", "3.jpg", "5.jpg")])
def test_images_decoded_late_are_those_decoded_first(
    folder, tmp_path, mosaic, bad
):
    folder = damage(folder, tmp_path, *bad)
    settings = {"bad_images": 0.5}
    late = data_of(folder, training(mosaic=mosaic), **settings)
    first = DecodedFirst(
        str(folder),
        str(folder / "labels.json"),
        training(mosaic=mosaic),
        **settings,
    )
    assert_equal(batches(late, 4), batches(first, 4))
    assert late.unreadable_images() == first.unreadable_images()
    assert len(late.unreadable_images()) == len(bad)


def test_an_unreadable_image_ends_an_evaluation(folder, tmp_path):
    data = data_of(damage(folder, tmp_path, "3.jpg"), training())
    with pytest.raises(DataError, match=r"3\.jpg is damaged"):
        data.sample(3)


def test_too_many_unreadable_images_end_a_training(folder, tmp_path):
    copy = damage(folder, tmp_path, "3.jpg", "4.jpg")
    data = data_of(copy, training(), bad_images=0.13)
    data.sample(3)
    with pytest.raises(DataError, match="^2 of 8 images"):
        data.sample(4)


def test_an_unreadable_tile_ends_a_run_without_bad_images(folder, tmp_path):
    names = [f"{number}.jpg" for number in range(1, 8)]
    data = data_of(damage(folder, tmp_path, *names), training(mosaic=1.0))
    with pytest.raises(DataError, match="is damaged"):
        data.sample(0)


def test_a_subclass_that_decodes_itself_is_asked(folder):
    asked = []

    class Own(CocoDetection):
        def load_or_replace(self, index, rng):
            asked.append(index)
            return super().load_or_replace(index, rng)

    class OwnSample(CocoDetection):
        def raw_sample(self, index, rng=None):
            asked.append(index)
            return super().raw_sample(index, rng)

    for kind in (Own, OwnSample):
        asked.clear()
        data = kind(
            str(folder), str(folder / "labels.json"), training(mosaic=1.0)
        )
        data.sample(3)
        assert asked[0] == 3
        assert len(asked) == 4


# ---- reduced ----


def test_training_decodes_as_many_pixels_as_it_needs(folder, reductions):
    data = data_of(folder, Compose([RandomHorizontalFlip(), Resize([96, 96])]))
    data.allow_reduced_decoding()
    image, target = data[0]
    assert reductions == [4]  # 480 / 4 = 120, and 480 / 8 is less than 96
    assert tuple(image.shape) == (3, 96, 96)
    assert target["orig_size"].tolist() == list(SIZE)


def test_a_crop_needs_more_pixels_of_the_image(folder, reductions):
    crop = RandomIoUCrop(
        min_scale=0.3, max_scale=0.31, sampler_options=[0.0, 1.0], p=1
    )
    data = data_of(folder, Compose([crop, Resize([96, 96])]))
    data.allow_reduced_decoding()
    for data.epoch in range(30):
        sample = data.sample(0)
        assert max(np.abs(sample.scale)) * reductions[-1] <= 1
    assert {1, 4} <= set(reductions)


def test_a_larger_batch_decodes_again(folder, reductions):
    data = data_of(folder, Compose([Resize([96, 96])]))
    data.allow_reduced_decoding()
    sample = data.sample(0)
    sample.render((112, 112))
    assert reductions == [4]
    sample.render((200, 200))
    assert reductions == [4, 2]
    sample.render((300, 300))
    assert reductions == [4, 2, 1]
    sample.render((96, 96))
    assert reductions == [4, 2, 1]


def test_tiles_of_a_mosaic_are_reduced(folder, reductions):
    data = data_of(folder, training(side=100, mosaic=1.0))
    data.allow_reduced_decoding()
    data.sample(0)
    assert len(reductions) == 4
    # tiles of 50 of 480 pixels, enlarged up to 1.5 times, need more than an eighth
    assert set(reductions) == {4}


@pytest.mark.parametrize(
    ("setting", "in_training", "expected"),
    [
        (None, False, 1),
        (None, True, 4),
        (False, True, 1),
        (True, False, 4),
        (True, True, 4),
    ],
)
def test_reduction_is_for_training_unless_it_is_set(
    folder, reductions, setting, in_training, expected
):
    data = data_of(
        folder, Compose([Resize([96, 96])]), reduced_decoding=setting
    )
    if in_training:
        data.allow_reduced_decoding()
    data.sample(0)
    assert reductions == [expected]


def test_transforms_draw_the_same_on_reduced_images(folder):
    whole = data_of(folder, training(), reduced_decoding=False)
    reduced = data_of(folder, training(), reduced_decoding=True)
    for (images, targets), (others, other_targets) in zip(
        batches(whole), batches(reduced), strict=True
    ):
        assert images.shape == others.shape
        assert float((images - others).abs().mean()) < 3 / 255
        assert not torch.equal(images, others)
        for target, other in zip(targets, other_targets):
            assert torch.equal(target["idx"], other["idx"])
            assert torch.equal(target["labels"], other["labels"])
            # rounding to whole pixels of the reduced image moves a box by half a pixel at most
            moved = (target["boxes"] - other["boxes"]).abs() * 96
            assert float(moved.max() if len(moved) else 0) <= 1.0


def test_pixels_are_whole_for_a_transform_that_looks_at_them(
    folder, reductions
):
    shapes = []

    def look(sample):
        shapes.append(tuple(sample.image.shape[1:]))

    data = data_of(folder, Compose([look, Resize([96, 96])]))
    data.allow_reduced_decoding()
    data.sample(7)
    assert shapes == [(480, 640)]
    assert reductions == [1]


def test_a_colour_that_is_read_early_is_complete(folder):
    colours = []

    def look(sample):
        colours.append(sample.colour)

    distort = RandomPhotometricDistort(contrast=(0.5, 0.5), p=1)
    early = data_of(folder, Compose([distort, look, Resize([96, 96])]))
    late = data_of(folder, Compose([distort, Resize([96, 96])]))
    for data in (early, late):
        data.allow_reduced_decoding()
    early.sample(0)
    # the mean of a reduced image differs a little
    assert np.abs(colours[0] - late.sample(0).colour).max() < 1


# ---- cached ----


@pytest.fixture(params=["memory", "folder"])
def place(request, tmp_path) -> str:
    return "memory" if request.param == "memory" else str(tmp_path / "cache")


@pytest.mark.parametrize("mosaic", [0.0, 0.5])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_run_with_a_cache_is_equal_to_one_without(
    folder, tmp_path, place, mosaic, reduced, reductions
):
    folder = damage(folder, tmp_path, "2.jpg")
    settings = {"reduced_decoding": reduced, "bad_images": 0.2}
    plain = batches(data_of(folder, training(mosaic=mosaic), **settings), 4)
    without = len(reductions)
    reductions.clear()
    data = data_of(
        folder, training(mosaic=mosaic), image_cache=place, **settings
    )
    assert_equal(batches(data, 4), plain)
    assert len(reductions) < without
    assert data.unreadable_images() == [2]


def test_workers_share_a_cache(folder, place):
    plain = batches(data_of(folder, training()), 3)
    data = data_of(folder, training(), image_cache=place)
    assert_equal(batches(data, 3, workers=2), plain)
    for index in range(len(data)):
        path = data.image_path(index)
        cached = data.policy.cache.get(
            image_policy.Key(index, str(path), SIZE, None, 1), path.stat()
        )
        assert cached is not None


def test_a_full_cache_changes_nothing(folder, place):
    plain = batches(data_of(folder, training()), 2)
    data = data_of(folder, training(), image_cache=place, image_cache_gb=0.002)
    assert_equal(batches(data, 2), plain)


def test_flags_of_a_cached_image_are_reported(folder, place, caplog):
    data = data_of(folder, training(), image_cache=place)
    data.sample(7)
    other = data_of(folder, training(), image_cache=place)
    other.policy.cache = data.policy.cache
    other.sample(7)
    with caplog.at_level("INFO", "dfine"):
        other.report_images()
    assert "images rotated according to their EXIF tag: 1" in caplog.text


def test_a_changed_image_is_noticed_although_it_is_cached(
    folder, tmp_path, place
):
    copy = damage(folder, tmp_path)
    data = data_of(copy, training(), image_cache=place)
    data.check()
    data.sample(1)
    (copy / "1.jpg").write_bytes((copy / "2.jpg").read_bytes())
    with pytest.raises(DataError, match="has changed since the run began"):
        data.sample(1)


def test_wrong_cache_settings_are_refused(folder):
    with pytest.raises(ConfigError, match="image_cache_gb is -1, expected"):
        data_of(folder, training(), image_cache="memory", image_cache_gb=-1)


def test_error_of_a_file_is_kept(folder, tmp_path):
    data = data_of(damage(folder, tmp_path, "1.jpg"), training())
    file = ImageFile(data.policy, 1, may_reduce=True)
    with pytest.raises(DataError) as caught:
        file.decode(2)
    assert file.error is caught.value
