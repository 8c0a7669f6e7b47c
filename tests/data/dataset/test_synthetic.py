"""Synthetic scenes."""

import json

import numpy as np
import pytest
from PIL import Image

from src.core.errors import ConfigError
from src.data.dataset.coco_dataset import CocoDetection
from src.data.dataset.synthetic import (
    CATEGORIES,
    MIN_VISIBLE,
    draw_scene,
    write_synthetic_coco,
)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng(i), 96, 5) for i in range(60)]


def test_boxes_are_tight_around_the_masks(scenes):
    for scene in scenes:
        for box, mask in zip(scene.boxes, scene.masks):
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [
                columns.min(),
                rows.min(),
                columns.max() + 1,
                rows.max() + 1,
            ]


def test_all_categories_and_numbers_of_objects_are_drawn(scenes):
    assert {int(c) for scene in scenes for c in scene.category_ids} == set(
        CATEGORIES
    )
    assert {len(scene.boxes) for scene in scenes} == {0, 1, 2, 3, 4, 5}


def test_shapes_overlap_but_leave_enough_to_be_seen(scenes):
    shares = []
    for scene in scenes:
        for i, mask in enumerate(scene.masks):
            covered = (
                scene.masks[i + 1 :].any(0)
                if len(scene.masks) > i + 1
                else np.zeros_like(mask)
            )
            shares.append((mask & ~covered).sum() / mask.sum())
    assert MIN_VISIBLE <= min(shares) < 1


def test_shapes_are_visible_in_the_image(scenes):
    scene = next(s for s in scenes if len(s.boxes) == 1)
    mask = scene.masks[0]
    assert (
        abs(scene.image[mask].mean(0) - scene.image[~mask].mean(0)).max() > 10
    )


def test_same_seed_draws_the_same_scene():
    first, second = (draw_scene(np.random.default_rng(3), 64) for _ in range(2))
    assert np.array_equal(first.image, second.image)


def test_written_set_loads_without_notes(tmp_path):
    write_synthetic_coco(tmp_path, train=6, val=3, size=64, seed=1)
    for part, count in (("train", 6), ("val", 3)):
        data = CocoDetection(
            str(tmp_path / "images"), str(tmp_path / f"{part}.json")
        )
        data.check_images_exist()
        assert (
            len(data),
            data.labels.findings.notes,
            data.labels.category_ids,
        ) == (
            count,
            [],
            sorted(CATEGORIES),
        )


def test_training_and_validation_images_differ(tmp_path):
    write_synthetic_coco(tmp_path, train=1, val=1, size=64, seed=1)
    assert not np.array_equal(
        *(
            np.array(Image.open(tmp_path / "images" / f"{part}_00000.jpg"))
            for part in ("train", "val")
        )
    )


def test_same_seed_writes_the_same_set(tmp_path):
    for name in ("a", "b"):
        write_synthetic_coco(tmp_path / name, train=2, val=1, size=64, seed=4)
    assert json.loads((tmp_path / "a/train.json").read_text()) == json.loads(
        (tmp_path / "b/train.json").read_text()
    )
    assert (tmp_path / "a/images/train_00001.jpg").read_bytes() == (
        tmp_path / "b/images/train_00001.jpg"
    ).read_bytes()


@pytest.mark.parametrize(
    "name", ["train.json", "val.json", "images/train_00001.jpg"]
)
def test_files_of_others_are_not_replaced(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_bytes(b'{"images": []}')
    with pytest.raises(
        ConfigError,
        match=f"{name} would be replaced, but this project did not write it",
    ):
        write_synthetic_coco(tmp_path, train=2, val=1, size=64)
    assert (tmp_path / name).read_bytes() == b'{"images": []}'


def test_an_earlier_set_is_replaced(tmp_path):
    for seed in (1, 2):
        write_synthetic_coco(tmp_path, train=2, val=1, size=64, seed=seed)
