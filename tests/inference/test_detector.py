"""A checkpoint is enough: images in, boxes with names out."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from src.core import CheckpointError, ConfigError, DataError
from src.data.dataset.coco_dataset import CocoDetection
from src.data.dataset.decoding import inspect_image
from src.detection.fitting import load_strictly
from src.detection.weight_file import read_weights
from src.inference import Detector, Tiling
from src.inference.reading import read_image
from tests.fixtures.pictures import (
    REFUSED,
    write_modes,
    write_orientations,
    xmp_with,
)
from tests.fixtures.tiny import DEMO_CONFIG, tiny_config
from tests.fixtures.trained_tiny import TRAINED


def same(one, other) -> bool:
    return (
        np.array_equal(one.boxes, other.boxes)
        and np.array_equal(one.scores, other.scores)
        and one.names == other.names
    )


def rewritten(folder, change) -> str:
    """Return a copy of the trained checkpoint with something changed."""
    content = torch.load(TRAINED, weights_only=True)
    change(content)
    torch.save(content, folder / "changed.pth")
    return str(folder / "changed.pth")


def test_it_finds_what_evaluation_finds(detector, tiny_data, val_images):
    cfg = tiny_config(tiny_data, num_classes=4)
    model = cfg.model
    load_strictly(model, read_weights(TRAINED))
    dataset = cfg.val_dataloader.dataset
    image, target = dataset[0]
    with torch.inference_mode():
        expected = cfg.postprocessor.eval()(
            model.eval()(image[None]), target["orig_size"][None]
        )[0]
    found = detector.predict(val_images[0], threshold=0)
    sure = expected["scores"].numpy() > 0.3
    assert sure.any()
    np.testing.assert_allclose(
        found.boxes[: sure.sum()], expected["boxes"].numpy()[sure], atol=1e-3
    )
    np.testing.assert_allclose(
        found.scores, expected["scores"].numpy(), atol=1e-5
    )


def test_the_training_configuration_is_not_needed(
    tmp_path, monkeypatch, val_images
):
    monkeypatch.chdir(tmp_path)
    assert (
        len(
            Detector.from_checkpoint(TRAINED, device="cpu").predict(
                val_images[0], threshold=0.3
            )
        )
        > 0
    )


def test_names_and_ids_are_those_of_the_training_labels(detector, val_images):
    names = {1: "disc", 3: "square", 7: "triangle", 8: "ring"}
    found = detector.predict(val_images[0], threshold=0)
    assert set(found.category_ids.tolist()) == set(names)
    assert found.names == [names[i] for i in found.category_ids.tolist()]


def test_the_default_threshold_is_the_checkpoints_own(detector, val_images):
    assert detector.threshold == pytest.approx(
        read_weights(TRAINED).meta["threshold"]
    )
    everything = detector.predict(val_images, threshold=0)
    assert [len(found) for found in detector.predict(val_images)] == [
        int((found.scores >= detector.threshold).sum()) for found in everything
    ]


def test_every_kind_of_image_gives_the_same(detector, val_images, tmp_path):
    Image.open(val_images[0]).save(tmp_path / "image.png")
    expected = detector.predict(tmp_path / "image.png", threshold=0.1)
    opened = Image.open(tmp_path / "image.png")
    array = np.asarray(opened)
    kinds = [
        str(tmp_path / "image.png"),
        opened,
        array,
        torch.from_numpy(array.copy()).permute(2, 0, 1),
        array[..., ::-1][..., ::-1],
    ]
    assert all(
        same(detector.predict(image, threshold=0.1), expected)
        for image in kinds
    )
    assert expected.size == (64, 64) and expected.source == str(
        tmp_path / "image.png"
    )
    assert detector.predict(array).source is None


def test_one_image_gives_one_prediction_and_several_give_a_list(
    detector, val_images
):
    assert not isinstance(detector.predict(val_images[0]), list)
    assert len(detector.predict([val_images[0]])) == 1
    assert len(detector.predict(iter(val_images[:3]))) == 3
    assert detector.predict([]) == []
    assert len(detector.predict(np.zeros((2, 50, 40, 3), np.uint8))) == 2


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_the_batch_changes_nothing(detector, val_images, batch_size):
    for one, other in zip(
        detector.predict(val_images[:5], threshold=0.1, batch_size=batch_size),
        detector.predict(val_images[:5], threshold=0.1),
    ):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        assert one.names == other.names


def test_images_of_different_sizes_share_a_batch(detector):
    wide, tall = (
        np.full((40, 160, 3), 120, np.uint8),
        np.full((90, 30, 3), 120, np.uint8),
    )
    together, alone = (
        detector.predict([wide, tall], threshold=0),
        [detector.predict(image, threshold=0) for image in (wide, tall)],
    )
    assert [found.size for found in together] == [(160, 40), (30, 90)]
    for one, other in zip(together, alone):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)


def test_grey_arrays_are_read_as_grey_pictures(detector, val_images):
    grey = np.asarray(Image.open(val_images[0]).convert("L"))
    assert same(
        detector.predict(grey, threshold=0.1),
        detector.predict(np.repeat(grey[..., None], 3, 2), threshold=0.1),
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10, 3)),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((0, 10, 3), np.uint8),
        torch.zeros(10, 10, 3),
        7,
    ],
    ids=["floats", "four channels", "no pixels", "channels last", "a number"],
)
def test_input_that_is_not_an_image_is_refused_with_the_expected_types(
    detector, image
):
    with pytest.raises(ConfigError, match="expected|is not an image"):
        detector.predict([image])


def test_a_file_that_is_not_there_is_named(detector, tmp_path):
    with pytest.raises(DataError, match="none.jpg cannot be read"):
        detector.predict(tmp_path / "none.jpg")


def test_unreadable_images_are_collected_if_asked_for(
    detector, val_images, tmp_path
):
    (tmp_path / "bad.jpg").write_bytes(b"not an image")
    bad = []
    seen = list(
        detector.stream(
            [val_images[0], tmp_path / "bad.jpg", val_images[1]], unreadable=bad
        )
    )
    assert [s.prediction.source for s in seen] == [
        str(val_images[0]),
        str(val_images[1]),
    ]
    assert "bad.jpg" in str(bad[0])


def test_suppression_removes_doubles_of_a_class_only_if_asked_for(
    detector, val_images
):
    everything, thinned = (
        detector.predict(val_images[0], threshold=0, nms=nms)
        for nms in (None, 0.5)
    )
    assert 0 < len(thinned) < len(everything)
    assert set(zip(thinned.names, thinned.scores.tolist())) <= set(
        zip(everything.names, everything.scores.tolist())
    )


def test_another_input_size_works_with_a_warning(val_images, caplog):
    with caplog.at_level(logging.WARNING, "dfine"):
        detector = Detector.from_checkpoint(
            TRAINED, device="cpu", input_size=(96, 128)
        )
    assert "96 x 128 instead of 64 x 64" in caplog.text
    assert detector.predict(val_images[0], threshold=0).boxes.shape == (20, 4)


def test_an_input_size_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="not a multiple of 32"):
        Detector.from_checkpoint(TRAINED, device="cpu", input_size=(100, 64))


def test_a_file_without_configuration_asks_for_one(tmp_path):
    path = rewritten(tmp_path, lambda content: content.pop("meta"))
    with pytest.raises(CheckpointError, match="contains no configuration"):
        Detector.from_checkpoint(path, device="cpu")


def test_a_configuration_that_does_not_fit_is_refused(tmp_path):
    path = rewritten(tmp_path, lambda content: content.pop("meta"))
    with pytest.raises(CheckpointError, match="does not fit this model"):
        Detector.from_checkpoint(path, device="cpu", config=DEMO_CONFIG)


def test_a_configuration_makes_up_for_one_that_is_missing(
    tmp_path, detector, val_images
):
    path = rewritten(tmp_path, lambda content: content.pop("meta"))
    tiny_config(num_classes=4).save(tmp_path / "tiny.yml")
    plain = Detector.from_checkpoint(
        path, device="cpu", config=tmp_path / "tiny.yml"
    )
    assert plain.threshold == 0.4 and plain.classes[0] == {
        "id": 0,
        "name": "class 0",
    }
    np.testing.assert_array_equal(
        plain.predict(val_images[0], threshold=0).boxes,
        detector.predict(val_images[0], threshold=0).boxes,
    )


def test_a_malformed_configuration_is_refused_with_its_file(tmp_path):
    def spoil(content):
        content["meta"]["config"] = "modle: DFINE\n"

    with pytest.raises(CheckpointError, match=r"changed.pth"):
        Detector.from_checkpoint(rewritten(tmp_path, spoil), device="cpu")


def test_tiles_find_what_is_too_small_in_the_whole(detector, val_images):
    """A scene in a corner of a large grey picture is invisible when that is shrunk to 64 pixels."""
    scene, large = (
        np.asarray(Image.open(val_images[0])),
        np.full((320, 320, 3), 128, np.uint8),
    )
    large[192:256, 64:128] = scene
    alone = detector.predict(scene, threshold=0.5)
    tiled = detector.predict(large, threshold=0.5, tiling=Tiling(64, 0.0))
    wanted = alone.boxes + np.float32([64, 192, 64, 192])
    assert len(alone) and all(
        any(np.abs(box - other).max() < 2 for other in tiled.boxes)
        for box in wanted
    )


def test_the_detector_leaves_the_checkpoints_notes_readable(detector):
    assert {
        "classes",
        "commit",
        "licences",
        "metrics",
        "threshold",
        "input_size",
        "preprocessing",
    } <= detector.meta.keys()
    assert detector.meta["input_size"] == [64, 64]


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"nms": -0.1},
        {"batch_size": 0},
    ],
    ids=str,
)
def test_invalid_settings_are_refused(detector, val_images, settings):
    with pytest.raises(ConfigError, match="expected"):
        detector.predict(val_images[0], **settings)


@pytest.mark.parametrize("value", [float("nan"), 2.0, "high", True])
def test_an_invalid_threshold_in_a_checkpoint_is_refused(tmp_path, value):
    path = rewritten(
        tmp_path, lambda content: content["meta"].update(threshold=value)
    )
    with pytest.raises(
        CheckpointError,
        match=r"meta\.threshold is .*, expected a (finite )?number",
    ):
        Detector.from_checkpoint(path, device="cpu")


def test_an_image_with_several_frames_is_looked_at_with_a_warning(
    detector, val_images, tmp_path, caplog
):
    frames = [Image.open(path) for path in val_images[:2]]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    detector.predict(tmp_path / "a.tiff")
    assert (
        f"{tmp_path} has images with several frames, of which the first is used (first: a.tiff)"
        in caplog.text
    )


def test_errors_of_another_name_are_refused(detector):
    with pytest.raises(ConfigError, match="errors is 'ignore', expected"):
        detector.predict([], errors="ignore")


def test_threads_share_a_detector(detector, val_images):
    expected = detector.predict(val_images, threshold=0.1)
    with ThreadPoolExecutor(4) as threads:
        calls = [
            threads.submit(detector.predict, val_images, threshold=0.1)
            for _ in range(8)
        ]
    for call in calls:
        assert all(
            same(one, other)
            for one, other in zip(call.result(), expected, strict=True)
        )


# ---- pictures of all modes ----


def test_a_picture_is_the_same_as_a_path_an_image_and_in_training(tmp_path):
    paths = write_modes(tmp_path)
    for name in REFUSED:
        del paths[name]
    paths |= write_orientations(tmp_path, 6)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    for number, (name, path) in enumerate(paths.items()):
        height, width = read_image(path)[0].shape[1:]
        record = {"id": number, "file_name": name}
        content["images"].append({**record, "width": width, "height": height})
    (tmp_path / "labels.json").write_text(json.dumps(content))
    dataset = CocoDetection(str(tmp_path), str(tmp_path / "labels.json"))
    for number, (name, path) in enumerate(paths.items()):
        expected, _ = read_image(path)
        with Image.open(path) as image:
            assert torch.equal(read_image(image)[0], expected), name
        sample = dataset.raw_sample(number)
        assert torch.equal(sample.image, expected), name
        assert torch.equal(inspect_image(path)[0], expected), name


def test_bit_depth_applies_to_paths_and_images_and_is_checked(
    detector, tmp_path
):
    grey = np.linspace(0, 4095, 64 * 64).astype(np.uint16).reshape(64, 64)
    Image.fromarray(grey).save(tmp_path / "a.png")
    eight_bits = np.round(grey * (255 / 4095)).astype(np.uint8)
    deep = Detector.from_parts(
        detector.engine,
        detector.preprocessing,
        detector.classes,
        bit_depth=12,
    )
    images = [tmp_path / "a.png", Image.open(tmp_path / "a.png"), eight_bits]
    one, two, three = deep.predict(images, threshold=0)
    np.testing.assert_allclose(one.boxes, three.boxes, atol=1e-3)
    np.testing.assert_allclose(two.boxes, three.boxes, atol=1e-3)
    drawn = np.asarray(one.select(one.scores > 2).draw())
    assert drawn[-1, -1].tolist() == [255, 255, 255]
    with pytest.raises(ConfigError, match="bit_depth is 40, expected 8 to 16"):
        Detector.from_parts(
            detector.engine, detector.preprocessing, [], bit_depth=40
        )


def test_doubtful_properties_of_files_are_logged_once_for_each_folder(
    tmp_path, caplog
):
    grey = np.full((8, 8), 4000, np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a", "b"):
        Image.fromarray(grey).save(tmp_path / f"{name}.png")
        Image.new("RGB", (8, 8)).save(
            tmp_path / f"{name}.jpg", exif=exif, xmp=xmp_with(3)
        )
        read_image(tmp_path / f"{name}.png")
        read_image(tmp_path / f"{name}.jpg")
    low, contradiction = caplog.messages
    assert "almost black" in low and "(first: a.png)" in low
    assert "of which Exif is used (first: a.jpg)" in contradiction
