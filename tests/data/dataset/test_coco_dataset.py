"""COCO-format data sets: labels as shared arrays, images opened when asked for."""

import io
import os
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.core.coco_categories import COCO_CATEGORY_IDS
from src.core.contracts import Target
from src.core.errors import ConfigError, DataError
from src.data.dataloader import DataLoader
from src.data.dataset.coco_dataset import CocoDetection
from src.data.dataset.decoding import ImageFlag
from src.data.transforms import (
    Compose,
    ConvertBoxes,
    ConvertPILImage,
    Mosaic,
    RandomHorizontalFlip,
    RandomIoUCrop,
    RandomZoomOut,
    Resize,
)
from src.runtime.distributed import rank
from tests.fixtures.coco_files import sound_coco, write_coco
from tests.fixtures.processes import on_ranks


def data_set(folder: Path, content=None, **settings) -> CocoDetection:
    return CocoDetection(
        str(folder),
        str(write_coco(folder, content or sound_coco())),
        **settings,
    )


def random_transforms() -> Compose:
    return Compose(
        [
            Mosaic(32),
            RandomZoomOut(p=1),
            RandomIoUCrop(p=1),
            RandomHorizontalFlip(),
            Resize([32, 32]),
        ],
        mosaic_prob=0.5,
    )


# ---- samples ----


def test_length_is_the_number_of_images(tmp_path):
    assert len(data_set(tmp_path)) == 3


def test_target_has_exactly_the_fields_of_the_contract(tmp_path):
    assert data_set(tmp_path)[0][1].keys() == Target.__annotations__.keys()


def test_target_describes_the_image(tmp_path):
    image, target = data_set(tmp_path)[1]
    described = {
        key: value.tolist() if isinstance(value, torch.Tensor) else value
        for key, value in target.items()
    }
    assert described == {
        "boxes": [[4, 5, 12, 14], [14, 5, 22, 14]],
        "labels": [0, 1],
        "area": [72, 72],
        "iscrowd": [0, 0],
        "image_id": [2],
        "orig_size": [40, 30],
        "idx": [1],
        "image_path": str(tmp_path / "2.png"),
        "boxes_read": 2,
        "boxes_lost": {},
    }
    assert tuple(image.shape) == (3, 30, 40)


@pytest.mark.parametrize(
    ("field", "dtype"),
    [
        ("boxes", torch.float32),
        ("labels", torch.int64),
        ("area", torch.float32),
        ("iscrowd", torch.int64),
        ("image_id", torch.int64),
        ("orig_size", torch.int64),
        ("idx", torch.int64),
    ],
)
def test_field_has_the_type_of_the_contract(tmp_path, field, dtype):
    assert data_set(tmp_path)[0][1][field].dtype == dtype


def test_pixels_are_those_of_the_file(tmp_path):
    image, _ = data_set(tmp_path)[2]
    assert np.array_equal(
        image.permute(1, 2, 0).numpy(), np.array(Image.open(tmp_path / "3.png"))
    )


def test_crowd_regions_are_left_out(tmp_path):
    content = sound_coco()
    content["annotations"][0]["iscrowd"] = 1
    _, target = data_set(tmp_path, content)[0]
    assert (
        target["boxes"].tolist(),
        target["labels"].tolist(),
        target["area"].tolist(),
    ) == (
        [[14, 5, 22, 14]],
        [1],
        [72],
    )


def test_image_without_objects_has_an_empty_target(tmp_path):
    content = sound_coco()
    content["annotations"] = content["annotations"][:2]
    _, target = data_set(tmp_path, content)[2]
    assert (
        target["boxes"].shape,
        target["labels"].shape,
        target["boxes"].dtype,
        target["labels"].dtype,
    ) == (
        (0, 4),
        (0,),
        torch.float32,
        torch.int64,
    )


def test_transforms_act(tmp_path):
    transforms = Compose(
        [
            Resize([15, 20]),
            ConvertPILImage(),
            ConvertBoxes(fmt="cxcywh", normalize=True),
        ]
    )
    image, target = data_set(tmp_path, transforms=transforms)[0]
    assert (tuple(image.shape), image.dtype, bool(image.max() <= 1)) == (
        (3, 15, 20),
        torch.float32,
        True,
    )
    assert target["boxes"][0].tolist() == pytest.approx(
        [8 / 40, 9.5 / 30, 8 / 40, 9 / 30]
    )


# ---- labels ----


@pytest.mark.parametrize(
    ("ids", "labels"),
    [((3, 7), [0, 1]), ((0, 1), [0, 1]), ((1, 2), [0, 1]), ((90, 5), [1, 0])],
)
def test_labels_are_positions_of_the_sorted_category_ids(tmp_path, ids, labels):
    content = sound_coco()
    for k, category in enumerate(ids):
        content["categories"][k]["id"] = category
        for record in content["annotations"][k::2]:
            record["category_id"] = category
    assert data_set(tmp_path, content)[0][1]["labels"].tolist() == labels


def test_unused_categories_count_as_classes(tmp_path):
    content = sound_coco()
    content["categories"].append({"id": 5, "name": "unused"})
    data = data_set(tmp_path, content)
    assert (
        data.num_classes,
        data.class_names,
        data[0][1]["labels"].tolist(),
    ) == (
        3,
        ["cat", "unused", "dog"],
        [0, 2],
    )


def test_remapped_labels_are_positions_in_cocos_80_classes(tmp_path):
    content = sound_coco()
    for record in content["annotations"][1::2]:
        record["category_id"] = 90
    content["categories"][1]["id"] = 90
    data = data_set(tmp_path, content, remap_mscoco_category=True)
    assert (data[0][1]["labels"].tolist(), data.num_classes) == (
        [COCO_CATEGORY_IDS.index(3), 79],
        80,
    )


def test_remap_of_ids_that_coco_has_not_is_refused(tmp_path):
    content = sound_coco()
    content["categories"].append({"id": 12, "name": "street sign"})
    with pytest.raises(ConfigError) as caught:
        data_set(tmp_path, content, remap_mscoco_category=True)
    assert str(caught.value) == (
        f"remap_mscoco_category is true, but {tmp_path / 'labels.json'} has category ids that "
        "COCO does not have: [12]; set it to False"
    )


def test_labels_of_a_trained_model_can_be_taken_over(tmp_path):
    data = data_set(tmp_path)
    data.use_labels(data.labels.category_ids)
    assert (data[0][1]["labels"].tolist(), data.num_classes) == ([3, 7], 8)


@pytest.mark.parametrize(
    ("settings", "as_ids", "of_labels", "of_detections"),
    [
        ({}, False, {0: "cat", 1: "dog"}, {0: "cat", 1: "dog"}),
        ({}, True, {3: "cat", 7: "dog"}, {3: "cat", 7: "dog"}),
        (
            {"remap_mscoco_category": True},
            False,
            {2: "cat", 6: "dog"},
            {3: "cat", 7: "dog"},
        ),
    ],
    ids=["plain", "category ids", "remap"],
)
def test_names_stand_under_labels_and_under_what_detections_carry(
    tmp_path, settings, as_ids, of_labels, of_detections
):
    data = data_set(tmp_path, **settings)
    if as_ids:
        data.use_labels(data.labels.category_ids)
    assert (data.label_names, data.detection_names) == (
        of_labels,
        of_detections,
    )


# ---- truth for the evaluator ----


def test_truth_holds_the_checked_labels(tmp_path):
    content = sound_coco(2)
    content["annotations"][0]["bbox"] = [-4, 5, 8, 9]
    content["annotations"][1]["bbox"] = [4, 5, 0, 9]
    content["annotations"][2]["iscrowd"] = 1
    truth = data_set(tmp_path, content).ground_truth()
    assert truth == {
        "images": [
            {"id": 1, "width": 40, "height": 30},
            {"id": 2, "width": 40, "height": 30},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 0,
                "bbox": [0, 5, 4, 9],
                "area": 72,
                "iscrowd": 0,
            },
            {
                "id": 2,
                "image_id": 2,
                "category_id": 0,
                "bbox": [4, 5, 8, 9],
                "area": 72,
                "iscrowd": 1,
            },
            {
                "id": 3,
                "image_id": 2,
                "category_id": 1,
                "bbox": [14, 5, 8, 9],
                "area": 72,
                "iscrowd": 0,
            },
        ],
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }


@pytest.mark.parametrize(
    ("settings", "as_ids", "ids"),
    [
        ({}, False, [0, 1]),
        ({"remap_mscoco_category": True}, False, [3, 7]),
        ({}, True, [3, 7]),
    ],
)
def test_truth_has_the_categories_that_detections_carry(
    tmp_path, settings, as_ids, ids
):
    data = data_set(tmp_path, **settings)
    if as_ids:
        data.use_labels(data.labels.category_ids)
    truth = data.ground_truth()
    assert [c["id"] for c in truth["categories"]] == ids
    assert {a["category_id"] for a in truth["annotations"]} == set(ids)


# ---- random state ----


def test_same_seed_epoch_and_index_give_the_same_sample(tmp_path):
    first, second = (
        data_set(tmp_path, transforms=random_transforms()),
        data_set(tmp_path, transforms=random_transforms()),
    )
    assert torch.equal(first[1][0], second[1][0])
    assert torch.equal(first[1][1]["boxes"], second[1][1]["boxes"])


@pytest.mark.parametrize("seed", range(4))
def test_sample_does_not_depend_on_earlier_samples(tmp_path, seed):
    data = data_set(tmp_path, transforms=random_transforms())
    data.seed = seed
    alone = data[2][0]
    np.random.seed(5)
    _ = data[0], data[1], torch.rand(3)
    assert torch.equal(data[2][0], alone)


def test_another_epoch_seed_or_index_gives_another_sample(tmp_path):
    content = sound_coco()
    for record in content["images"]:
        record["file_name"] = "1.png"
    data = data_set(tmp_path, content, transforms=random_transforms())
    images = [data[0][0], data[1][0]]
    data.set_epoch(1)
    images.append(data[0][0])
    data.set_epoch(0)
    data.seed = 1
    images.append(data[0][0])
    assert all(
        not torch.equal(a, b) for i, a in enumerate(images) for b in images[:i]
    )


def test_sample_draws_all_others_of_the_data_set_evenly(tmp_path):
    first = data_set(tmp_path).raw_sample(0)
    others = [first.draw_other(first.rng) for _ in range(300)]
    counts = np.bincount(
        [int(other.info["idx"]) for other in others], minlength=3
    )
    assert (abs(counts - 100) < 4 * (300 * 2 / 9) ** 0.5).all()
    assert all(other.rng is first.rng for other in others)


def test_epoch_reaches_the_transforms(tmp_path):
    transforms = Compose(
        [RandomZoomOut(p=1, side_range=[2, 2])],
        policy={"name": "stop_epoch", "epoch": 3, "ops": ["RandomZoomOut"]},
    )
    data, sizes = data_set(tmp_path, transforms=transforms), []
    for epoch in (2, 3):
        data.set_epoch(epoch)
        sizes.append(tuple(data[0][0].shape))
    assert sizes == [(3, 60, 80), (3, 30, 40)]


# ---- workers ----


def test_data_set_hands_its_arrays_to_a_worker_without_copying_them(tmp_path):
    content = sound_coco(2000)
    data = CocoDetection(
        str(tmp_path), str(write_coco(tmp_path, content, draw=False))
    )
    stream = io.BytesIO()
    ForkingPickler(stream).dump(data)
    arrays = sum(
        value.nbytes
        for value in vars(data.labels).values()
        if isinstance(value, torch.Tensor)
    )
    assert (arrays > 150_000, stream.tell() < 10_000) == (True, True)


# ---- faults ----


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(
        ConfigError,
        match="^CocoDetection.img_folder /no/such/folder is not a folder$",
    ):
        CocoDetection(
            "/no/such/folder", str(write_coco(tmp_path, sound_coco()))
        )


def test_masks_are_refused(tmp_path):
    with pytest.raises(
        ConfigError,
        match="^CocoDetection.return_masks is true; this detector does not use masks, set it to false$",
    ):
        data_set(tmp_path, return_masks=True)


def test_images_are_all_there(tmp_path):
    data_set(tmp_path).check_images_exist()


def test_missing_images_are_counted_and_named(tmp_path):
    data = data_set(tmp_path)
    os.remove(tmp_path / "1.png")
    os.remove(tmp_path / "3.png")
    with pytest.raises(DataError) as caught:
        data.check_images_exist()
    assert (
        str(caught.value)
        == f"2 of 3 images of {tmp_path / 'labels.json'} do not exist in {tmp_path}: "
        "images[0] (id 1) '1.png'; images[2] (id 3) '3.png'"
    )


def test_many_missing_images_are_counted_and_the_first_named(tmp_path):
    data = CocoDetection(
        str(tmp_path), str(write_coco(tmp_path, sound_coco(50), draw=False))
    )
    with pytest.raises(
        DataError, match=r"^50 of 50 images of .* '20\.png' \.\.\. and 30 more$"
    ):
        data.check_images_exist()


def test_missing_folder_of_images_is_noticed(tmp_path):
    content = sound_coco()
    content["images"][1]["file_name"] = "absent/2.png"
    data = CocoDetection(
        str(tmp_path), str(write_coco(tmp_path, content, draw=False))
    )
    for name in ("1.png", "3.png"):
        (tmp_path / name).touch()
    with pytest.raises(
        DataError,
        match=rf"^1 of 3 images of .* do not exist in {tmp_path}: .* 'absent/2.png'$",
    ):
        data.check_images_exist()


def test_links_out_of_the_folder_are_opened_where_they_are_trusted(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    labels = write_coco(folder, sound_coco())
    (tmp_path / "elsewhere.png").write_bytes((folder / "2.png").read_bytes())
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(
        DataError,
        match=r"^1 of 3 images of .* are symbolic links out of .*: "
        r"images\[1\] \(id 2\) 2\.png -> .*elsewhere\.png; set",
    ):
        CocoDetection(str(folder), str(labels)).check_images_exist()
    CocoDetection(
        str(folder), str(labels), follow_links=True
    ).check_images_exist()


def test_images_in_common_are_those_of_the_same_path(tmp_path):
    data = data_set(tmp_path)
    content = sound_coco(2)
    content["images"][0]["file_name"] = "other.png"
    other = CocoDetection(
        str(tmp_path),
        str(write_coco(tmp_path, content, "other.json", draw=False)),
    )
    assert data.images.in_common(other.images) == [str(tmp_path / "2.png")]


def test_last_image_of_a_worker_is_named_by_id_and_file(tmp_path):
    data = data_set(tmp_path)
    assert data.last_image(0) == "none yet"
    list(DataLoader(data, batch_size=3, num_workers=1, collate_fn=list))
    assert data.last_image(0) == "3 (3.png)"
    data.set_epoch(1)
    assert data.last_image(0) == "none yet"


# ---- images that cannot be read ----


def with_bad(
    folder: Path, *indices: int, count: int = 10, **settings
) -> CocoDetection:
    """Return a data set of which some images are empty files."""
    data = data_set(folder, sound_coco(count), **settings)
    for index in indices:
        data.image_path(index).write_bytes(b"")
    return data


def test_an_unreadable_image_is_replaced_by_another_one(tmp_path):
    data = with_bad(tmp_path, 3, bad_images=0.1)
    taken = [int(data.sample(3).info["idx"]) for data.epoch in range(20)]
    assert 3 not in taken and len(set(taken)) > 4
    assert [
        int(data.sample(3).info["idx"]) for data.epoch in range(20)
    ] == taken


def test_sound_images_are_what_they_would_be_without_bad_ones(tmp_path):
    before = data_set(tmp_path, sound_coco(10), transforms=random_transforms())
    expected = before[5]
    after = with_bad(
        tmp_path, 3, bad_images=0.1, transforms=random_transforms()
    )
    assert torch.equal(after[5][0], expected[0]) and torch.equal(
        after[5][1]["boxes"], expected[1]["boxes"]
    )


def test_mosaic_does_without_images_that_cannot_be_read(tmp_path):
    data = with_bad(
        tmp_path,
        *range(1, 10),
        bad_images=0.9,
        transforms=Compose([Mosaic(32)]),
    )
    assert int(data.sample(0).info["idx"]) == 0


def test_image_read_twice_counts_once(tmp_path):
    data = with_bad(tmp_path, 3, bad_images=0.1)
    for data.epoch in range(3):
        data.sample(3)
    data.report_images()


def test_more_than_the_limit_is_refused_with_all_files_and_the_last_reason(
    tmp_path,
):
    data = with_bad(tmp_path, 3, 4, bad_images=0.1)
    data.sample(3)
    with pytest.raises(DataError) as caught:
        data.sample(4)
    bad = [str(tmp_path / f"{i}.png") for i in (4, 5)]
    assert str(caught.value) == (
        f"2 of 10 images of {tmp_path / 'labels.json'} cannot be read, "
        f"more than bad_images allows (10 %): {bad[0]}, {bad[1]}; the last: "
        f"image {bad[1]} is empty (0 bytes); repair them, or raise dataset.bad_images"
    )


@pytest.mark.parametrize("share", [None, 0])
def test_without_a_tolerated_fraction_the_first_ends_the_run(tmp_path, share):
    with pytest.raises(DataError, match=f"^image {tmp_path}/4.png is empty"):
        with_bad(tmp_path, 3, bad_images=share).sample(3)


@pytest.mark.parametrize(
    ("given", "allowed"), [(None, 0.001), (0, 0), (0.2, 0.2)]
)
def test_training_allows_one_bad_image_in_a_thousand_by_default(
    tmp_path, given, allowed
):
    data = data_set(tmp_path, bad_images=given)
    data.allow_bad_images()
    assert data.policy.bad_images == allowed


@pytest.mark.parametrize(
    ("count", "tolerated"), [(999, 0), (1000, 1), (3000, 3)]
)
def test_fraction_is_rounded_down_to_whole_images(tmp_path, count, tolerated):
    data = CocoDetection(
        str(tmp_path),
        str(write_coco(tmp_path, sound_coco(count), draw=False)),
        bad_images=0.001,
    )
    for index in range(tolerated):
        data.policy.flags.add(index, ImageFlag.UNREADABLE)
    data.report_images()
    data.policy.flags.add(tolerated, ImageFlag.UNREADABLE)
    with pytest.raises(DataError, match=f"^{tolerated + 1} of {count} images"):
        data.report_images()


def test_each_bad_image_is_reported_once_with_its_reason(tmp_path, caplog):
    data = with_bad(tmp_path, 3, 4, bad_images=0.2)
    data.sample(3)
    data.report_images()
    data.sample(3), data.sample(4)
    data.report_images()
    assert [
        caplog.text.count(
            f"image {tmp_path / name} is empty (0 bytes); it is replaced by another image"
        )
        for name in ("4.png", "5.png")
    ] == [1, 1]
    assert (
        "images that cannot be read: 2, allowed: 2 (bad_images: 0.2)"
        in caplog.text
    )


def test_image_that_can_be_read_later_is_reported_too(tmp_path, caplog):
    data = with_bad(tmp_path, 3, bad_images=0.1)
    data.sample(3)
    Image.new("RGB", (40, 30)).save(tmp_path / "4.png")
    data.report_images()
    assert (
        f"image {tmp_path / '4.png'} could not be read at first, but can be now"
        in caplog.text
    )


def test_ranks_count_bad_images_together(tmp_path):
    def work() -> str:
        data = CocoDetection(
            str(tmp_path), str(tmp_path / "labels.json"), bad_images=0.1
        )
        data.sample(3 + rank())
        with pytest.raises(DataError) as caught:
            data.report_images()
        return str(caught.value)

    with_bad(tmp_path, 3, 4)
    messages = on_ranks(2, work)
    assert messages[0] == messages[1] and messages[0].startswith(
        "2 of 10 images"
    )


@pytest.mark.parametrize("share", [-0.1, 1])
def test_fraction_out_of_range_is_refused(tmp_path, share):
    with pytest.raises(
        ConfigError,
        match=f"^CocoDetection.bad_images is {share}, expected a fraction from 0 to below 1$",
    ):
        data_set(tmp_path, bad_images=share)


def test_evaluation_leaves_out_no_image(tmp_path):
    with pytest.raises(
        ConfigError,
        match="^val_dataloader.dataset.bad_images is 0.1; "
        "the objects of a skipped image would count as missed, set it to 0$",
    ):
        data_set(tmp_path, bad_images=0.1).ground_truth()


def test_image_that_vanished_later_is_named(tmp_path):
    data = data_set(tmp_path)
    os.remove(tmp_path / "2.png")
    with pytest.raises(
        DataError,
        match=f"^image {tmp_path}/2.png cannot be read: No such file or directory$",
    ):
        data[1]


def test_image_of_another_size_than_its_labels_is_named(tmp_path):
    data = data_set(tmp_path)
    Image.new("RGB", (41, 30)).save(tmp_path / "2.png")
    with pytest.raises(
        DataError,
        match=f"^image {tmp_path}/2.png has 41 x 30 pixels but its labels were made for 40 x 30$",
    ):
        data[1]
