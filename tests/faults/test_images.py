"""Faults of image files (F43 to F54)."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data.dataset.decoding import MAX_PIXELS
from src.detection.weight_file import read_weights
from src.inference import Detector
from src.inference.detector_evaluation import open_labelled_images
from src.runtime.process import explain
from src.solver import det_solver
from tests.fixtures.commands import read_log, write_tiny_config
from tests.fixtures.pictures import xmp_with
from tests.fixtures.slow import slow
from tests.fixtures.tiny import SyntheticData, tiny_config
from tests.fixtures.train_here import (
    change_labels,
    image_path,
    private_copy,
    train_here,
)

SMOOTH = np.stack(
    [
        np.add.outer(np.arange(64) * 2, np.arange(64)),
        np.add.outer(np.arange(64), np.arange(64) * 2),
        np.full((64, 64), 90),
    ],
    -1,
).astype(np.uint8)
"""`[64, 64, 3]` without sharp edges, so that JPEG keeps it."""


@pytest.fixture
def own_data(tiny_data, tmp_path) -> SyntheticData:
    """A data set of the test's own."""
    return private_copy(tiny_data, tmp_path / "data")


@pytest.fixture
def fit(own_data, tmp_path):
    """Return a function that trains for an epoch on the data, with settings of the training data set."""

    def run(num_workers=0, **settings):
        return train_here(
            "-c",
            write_tiny_config(
                tmp_path,
                own_data,
                epochs=1,
                train_dataloader={
                    "dataset": settings,
                    "num_workers": num_workers,
                },
            ),
            "--seed=0",
            "--overwrite",
        )

    return run


def grey_levels(data: SyntheticData) -> np.ndarray:
    """Return the first evaluation image as the detector gets it, `[H, W, 3]` in 0..255."""
    image, _ = tiny_config(data).val_dataloader.dataset[0]
    return image.permute(1, 2, 0).numpy() * 255


def saved(
    data: SyntheticData, image: Image.Image, form: str = "PNG", **settings
) -> Path:
    """Replace the first evaluation image by an image; the suffix is kept."""
    path = image_path(data, 0, "val")
    image.save(path, form, **settings)
    return path


def logged_flags(data: SyntheticData, caplog) -> str:
    """Return the log lines about the evaluation images after decoding."""
    dataset = tiny_config(data).val_dataloader.dataset
    for index in range(len(dataset)):
        _ = dataset[index]
    caplog.set_level("INFO", "dfine")
    dataset.report_images()
    return caplog.text


# ---- files that cannot be read ----


def test_f43_missing_images_are_counted_and_named_before_training(
    own_data, fit
):
    image_path(own_data, 3).unlink()
    image_path(own_data, 9).unlink()
    ended = fit()
    assert ended.code == 3
    assert (
        "2 of 24 images of" in ended.err
        and f"do not exist in {own_data.folder / 'images'}: images[3] (id 4) 'train_00003.jpg'; "
        in ended.err
        and "'train_00009.jpg'" in ended.err
    )


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


UNREADABLE = {
    "zero bytes": lambda path: path.write_bytes(b""),
    "HTML": lambda path: path.write_text("<html>404 Not Found</html>"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "half a JPEG": cut_in_half,
}
REASONS = {
    "zero bytes": "is empty (0 bytes)",
    "HTML": "is not an image file (it begins with b'<html>404 No')",
    "a folder": "cannot be read: Is a directory",
    "half a JPEG": "is damaged: ",
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_f44_unreadable_image_ends_a_small_run_with_its_path_and_reason(
    own_data, fit, kind
):
    UNREADABLE[kind](image_path(own_data, 3))
    ended = fit()
    assert ended.code == 3
    assert (
        "1 of 24 images of" in ended.err
        and "more than bad_images allows (0.1 %)" in ended.err
    )
    assert f"image {image_path(own_data, 3)} {REASONS[kind]}" in ended.err


def test_f44_unreadable_images_within_the_limit_are_skipped_counted_and_named(
    own_data, fit, tmp_path
):
    for index, kind in enumerate(UNREADABLE):
        UNREADABLE[kind](image_path(own_data, index))
    ended = fit(bad_images=0.2)
    assert (ended.code, ended.err) == (0, "")
    assert all(
        f"warning: image {image_path(own_data, i)} {REASONS[kind]}" in ended.out
        for i, kind in enumerate(UNREADABLE)
    )
    assert (
        "images that cannot be read: 4, allowed: 4 (bad_images: 0.2)"
        in ended.out
    )
    assert len(read_log(tmp_path / "run")) == 1


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_f45_truncated_image_of_the_evaluation_is_named_and_ends_the_run(
    own_data, fit, form
):
    path = saved(own_data, Image.fromarray(SMOOTH), form)
    cut_in_half(path)
    ended = fit(bad_images=0.9)
    assert ended.code == 3
    assert ended.err.startswith(f"error[3]: image {path} is damaged: ")


# ---- modes ----


def test_f46_cmyk_images_keep_their_colours_and_are_counted(own_data, caplog):
    saved(own_data, Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    assert abs(grey_levels(own_data) - SMOOTH).max() <= 3
    assert (
        "CMYK images, converted to RGB: 1 (first: val_00000.jpg)"
        in logged_flags(own_data, caplog)
    )


def test_f47_sixteen_bit_images_keep_their_brightness(own_data):
    saved(own_data, Image.fromarray(SMOOTH[..., 0].astype(np.uint16) * 257))
    assert abs(grey_levels(own_data) - SMOOTH[..., :1]).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_f48_images_with_an_orientation_tag_are_turned_if_their_labels_are_upright_and_counted(
    own_data, orientation, caplog
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    saved(own_data, Image.fromarray(SMOOTH[:48]), exif=exif)
    upright = SMOOTH[:48] if orientation < 5 else SMOOTH[:48].swapaxes(0, 1)
    change_labels(
        own_data,
        lambda labels: labels["images"][0].update(
            height=upright.shape[0], width=upright.shape[1]
        ),
        "val",
    )
    image = tiny_config(own_data).val_dataloader.dataset.raw_sample(0).image
    assert tuple(image.shape[1:]) == upright.shape[:2]
    assert (
        "images rotated according to their EXIF tag: 1"
        in logged_flags(own_data, caplog)
    ) is (orientation > 1)


def test_f48_rotation_note_that_contradicts_the_labels_ends_the_run(
    own_data, fit
):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = image_path(own_data, 3)
    Image.fromarray(SMOOTH[:48]).save(path, exif=exif)
    ended = fit(bad_images=0.9)
    assert ended.code == 3
    assert f"{path} has 48 x 64, its labels were made for 64 x 64" in ended.err


@pytest.mark.parametrize("form", ["GIF", "PNG", "TIFF", "WEBP"])
def test_f49_of_several_frames_the_first_is_used_with_one_warning(
    own_data, caplog, form
):
    frames = [
        Image.new("RGB", (64, 64), colour)
        for colour in ((255, 0, 0), (0, 255, 0))
    ]
    saved(
        own_data,
        frames[0],
        form,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if form == "WEBP" else {}),
    )
    assert abs(grey_levels(own_data) - (255, 0, 0)).max() <= 1
    assert (
        logged_flags(own_data, caplog).count(
            "images with several frames, of which the first is used: 1 (first: val_00000.jpg)"
        )
        == 1
    )


DOUBTFUL = {
    "several frames": lambda data: saved(
        data,
        Image.new("RGB", (64, 64)),
        "GIF",
        save_all=True,
        append_images=[Image.new("RGB", (64, 64), (9, 9, 9))],
    ),
    "the content of another": lambda data: shutil.copy(
        image_path(data, 1), image_path(data, 5)
    ),
    "boxes without area, dropped": lambda data: change_labels(
        data, lambda labels: labels["annotations"][0].update(bbox=[1, 1, 0, 5])
    ),
    "boxes reaching beyond their image, clipped": lambda data: change_labels(
        data, lambda labels: labels["annotations"][0].update(bbox=[1, 1, 99, 5])
    ),
}


@pytest.mark.parametrize("doubt", DOUBTFUL)
def test_f49_with_strict_what_would_be_a_warning_about_the_data_ends_the_run(
    own_data, tmp_path, doubt
):
    DOUBTFUL[doubt](own_data)
    ended = train_here("-c", write_tiny_config(tmp_path, own_data), "--strict")
    assert ended.code == 3
    assert (
        ended.err.startswith(
            "error[3]: strict treats data warnings as errors, and there are 1: "
        )
        and doubt in ended.err
    )


def test_f44_with_strict_the_first_image_that_cannot_be_read_ends_the_run(
    own_data, tmp_path
):
    image_path(own_data, 3).write_bytes(b"")
    ended = train_here(
        "-c",
        write_tiny_config(
            tmp_path,
            own_data,
            train_dataloader={"dataset": {"bad_images": 0.9}},
        ),
        "--seed=0",
        "--strict",
    )
    assert (ended.code, ended.err) == (
        3,
        f"error[3]: image {image_path(own_data, 3)} is empty (0 bytes)\n",
    )


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        ("RGBA", (255, 127, 127)),
        ("LA", (165.5,) * 3),
        ("P", (255, 0, 0)),
        ("1", (255,) * 3),
        ("I", (128,) * 3),
    ],
)
def test_f50_every_mode_with_a_defined_range_is_read_transparency_over_white(
    own_data, mode, seen
):
    image = {
        "RGBA": lambda: Image.new("RGBA", (64, 64), (255, 0, 0, 128)),
        "LA": lambda: Image.new("LA", (64, 64), (76, 128)),
        "P": lambda: Image.new("RGB", (64, 64), (255, 0, 0)).quantize(4),
        "1": lambda: Image.new("1", (64, 64), 1),
        "I": lambda: Image.fromarray(np.full((64, 64), 128 * 257, np.int32)),
    }[mode]()
    saved(own_data, image, "TIFF" if mode == "I" else "PNG")
    assert abs(grey_levels(own_data) - seen).max() <= 1


def test_f50_values_without_a_defined_range_end_the_run(own_data, fit):
    path = image_path(own_data, 0, "val")
    Image.fromarray(SMOOTH[..., 0].astype(np.float32)).save(path, "TIFF")
    ended = fit()
    assert ended.code == 3
    assert (
        f"image {path} has floating-point values without a defined range"
        in ended.err
    )


# ---- sizes ----


def test_f51_decompression_bomb_is_refused_without_being_decoded(
    own_data, fit, monkeypatch
):
    path = saved(own_data, Image.fromarray(SMOOTH))
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 10_000, 10_000)
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    change_labels(
        own_data,
        lambda labels: labels["images"][0].update(width=10_000, height=10_000),
        "val",
    )
    monkeypatch.setattr(
        Image.Image, "load", lambda _: pytest.fail("the image was decoded")
    )
    ended = fit()
    assert ended.code == 3
    assert (
        f"image {path} has 10000 x 10000 pixels, more than {MAX_PIXELS}; it was not decoded"
        in ended.err
    )


def test_f52_tiny_and_narrow_images_train(own_data, fit, tmp_path):
    sizes = [(1, 1), (1, 50), (50, 1), (20_000, 20)]
    images = [
        {"id": i, "file_name": f"train_{i:05}.jpg", "width": w, "height": h}
        for i, (w, h) in enumerate(sizes)
    ]
    boxes = [
        {
            "id": i,
            "image_id": i,
            "category_id": 1,
            "bbox": [0, 0, w, h],
            "iscrowd": 0,
        }
        for i, (w, h) in enumerate(sizes)
    ]
    for index, size in enumerate(sizes):
        Image.new("RGB", size, (200, 20, 20)).save(image_path(own_data, index))
    change_labels(
        own_data, lambda labels: labels.update(images=images, annotations=boxes)
    )
    ended = fit()
    assert (ended.code, ended.err) == (0, "")
    assert "dropped" not in ended.out and np.isfinite(
        read_log(tmp_path / "run")[0]["train_loss"]
    )


# ---- images and the set they belong to ----


def test_f53_image_that_changes_its_size_between_epochs_is_named(own_data):
    loader = tiny_config(own_data).train_dataloader
    assert sum(len(targets) for _, targets in loader) == 24
    Image.fromarray(SMOOTH[:48]).save(image_path(own_data, 3))
    with pytest.raises(Exception) as caught:
        list(loader)
    assert explain(caught.value) == (
        3,
        f"image {image_path(own_data, 3)} has 64 x 48 pixels but its labels were made for 64 x 64",
    )


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("change", ["other bytes", "same bytes"])
def test_f53_image_that_changes_during_the_run_ends_it_by_name(
    own_data, fit, monkeypatch, change, workers
):
    path, ordinary = image_path(own_data, 3), det_solver.begin_epoch

    def rewrite_then_begin(run, epoch):
        os.utime(path, (1, 1)) if change == "same bytes" else saved_as_png(path)
        ordinary(run, epoch)

    monkeypatch.setattr(det_solver, "begin_epoch", rewrite_then_begin)
    ended = fit(num_workers=workers, bad_images=0.9)
    assert ended.code == 3
    assert (
        f"image {path} has changed since the run began (" in ended.err
        and "-r auto" in ended.err
    )
    assert (
        "bytes, but written again" if change == "same bytes" else "bytes then, "
    ) in ended.err


def saved_as_png(path: Path) -> None:
    Image.open(path).save(path, "PNG")


def test_f53_without_watching_files_may_be_rewritten(
    own_data, fit, monkeypatch
):
    ordinary = det_solver.begin_epoch
    monkeypatch.setattr(
        det_solver,
        "begin_epoch",
        lambda run, epoch: (
            os.utime(image_path(own_data, 3), (1, 1)),
            ordinary(run, epoch),
        ),
    )
    assert fit(watch_files=False).code == 0


def test_f54_images_with_the_content_of_another_are_counted_within_and_across_data_sets(
    own_data, fit
):
    for part, index in (("train", 5), ("train", 9), ("val", 2)):
        shutil.copy(image_path(own_data, 1), image_path(own_data, index, part))
    ended = fit()
    assert ended.code == 0
    assert (
        "train.json: images with the content of another one: "
        f"2 (first: {image_path(own_data, 5)} is {image_path(own_data, 1)})"
    ) in ended.out
    assert (
        "images in both data sets under different names: 1 "
        f"(first: {image_path(own_data, 2, 'val')} is {image_path(own_data, 1)})"
        in ended.out
    )


def test_f54_images_listed_twice_or_shared_with_the_evaluation_are_counted(
    own_data, fit
):
    labels = json.loads((own_data.folder / "val.json").read_text())
    labels["images"][1]["file_name"] = labels["images"][0]["file_name"]
    (own_data.folder / "train.json").write_text(json.dumps(labels))
    ended = fit()
    assert ended.code == 0
    assert (
        "files listed more than once: 1 (first: images[1] (id 2) val_00000.jpg)"
        in ended.out
    )
    assert (
        f"images used for training and for evaluation: 7 (first: {image_path(own_data, 0, 'val')})"
        in ended.out
    )


# ---- what takes the place of an unreadable image ----


@pytest.mark.parametrize("workers", [0, 2])
def test_f44_replacement_follows_from_seed_epoch_and_index(own_data, workers):
    image_path(own_data, 3).write_bytes(b"")
    loader = tiny_config(
        own_data,
        train_dataloader={
            "num_workers": workers,
            "dataset": {"bad_images": 0.1},
        },
    ).train_dataloader
    runs = []
    for seed in (0, 0, 1):
        loader.set_seed(seed)
        loader.set_epoch(0)
        runs.append(
            [
                (int(t["image_id"]), t["boxes"])
                for _, targets in loader
                for t in targets
            ]
        )
    assert len(runs[0]) == 24 and 4 not in [image_id for image_id, _ in runs[0]]
    assert all(
        a == b and torch.equal(x, y) for (a, x), (b, y) in zip(runs[0], runs[1])
    )
    assert sorted(a for a, _ in runs[0]) != sorted(a for a, _ in runs[2])


def test_f48_orientation_in_xmp_is_used_from_the_header_scan_to_the_decoder(
    own_data, fit
):
    path = image_path(own_data, 3)
    Image.fromarray(SMOOTH[:48]).save(path, xmp=xmp_with(6))
    change_labels(
        own_data,
        lambda labels: labels["images"][3].update(width=48, height=64),
    )
    assert fit().code == 0


def test_orientations_that_contradict_each_other_are_warned_about_at_the_start(
    own_data, fit
):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(SMOOTH).save(
        image_path(own_data, 3), exif=exif, xmp=xmp_with(1)
    )
    ended = fit()
    assert ended.code == 0
    assert (
        ended.out.count(
            "images with different orientations in Exif and XMP, of which Exif is used: 1 (first: train_00003"
        )
        == 1
    )


def twelve_bits(data: SyntheticData) -> None:
    """Write all training images as 12-bit samples in 16-bit files."""
    for path in image_path(data, 0).parent.glob("train_*.jpg"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        Image.fromarray(grey * 16).save(path, "PNG")


def test_12_bit_samples_are_warned_about_at_the_start_and_scaled_by_bit_depth(
    own_data, fit
):
    twelve_bits(own_data)
    dark = fit()
    assert dark.code == 0
    assert "almost black, because all samples are below 16384" in dark.out
    bright = fit(bit_depth=12)
    assert bright.code == 0
    assert "almost black" not in bright.out
    assert "val_dataloader.dataset.bit_depth is 16" in bright.out


def test_bit_depth_is_carried_into_the_checkpoints_of_a_run(own_data, tmp_path):
    twelve_bits(own_data)
    config = write_tiny_config(
        tmp_path,
        own_data,
        epochs=1,
        train_dataloader={"dataset": {"bit_depth": 12}},
        val_dataloader={"dataset": {"bit_depth": 12}},
    )
    assert train_here("-c", config, "--seed=0").code == 0
    for name in ("best.pth", "last.pth"):
        checkpoint = tmp_path / "run" / name
        assert read_weights(checkpoint).bit_depth == 12
        detector = Detector.from_checkpoint(checkpoint, device="cpu")
        assert detector.bit_depth == 12
    other = write_tiny_config(tmp_path, own_data)
    ended = train_here("-c", other, "--test-only", "-r", checkpoint)
    assert ended.code == 0
    assert "was trained with bit_depth 12, but val_dataloader" in ended.out
    eight = Detector.from_checkpoint(checkpoint, device="cpu", bit_depth=16)
    assert eight.bit_depth == 16
    assert open_labelled_images(detector).bit_depth == 12


def test_bit_depth_out_of_range_is_refused(own_data, fit):
    ended = fit(bit_depth=40)
    assert ended.code == 2
    assert "bit_depth is 40, expected 8 to 16" in ended.err


# ---- caches of decoded images ----


@pytest.mark.parametrize("workers", [0, *slow(2)])
@pytest.mark.parametrize("place", ["memory", "folder"])
def test_training_with_an_image_cache_ends_as_it_does_without(
    fit, tmp_path, monkeypatch, place, workers
):
    plain = fit()
    assert plain.code == 0
    losses = read_log(tmp_path / "run")
    if place == "folder":
        place = str(tmp_path / "cache")
    cached = fit(workers, image_cache=place, image_cache_gb=0.01)
    assert (cached.code, cached.err) == (0, "")
    again = read_log(tmp_path / "run")
    assert again[-1]["train_loss"] == losses[-1]["train_loss"]


def test_image_cache_in_a_folder_that_cannot_be_written_is_named(fit, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    ended = fit(image_cache=str(tmp_path / "file"))
    assert ended.code == 2
    assert f"image_cache {tmp_path / 'file'} cannot be used" in ended.err


def test_wrong_size_of_an_image_cache_is_refused(fit):
    ended = fit(image_cache="memory", image_cache_gb=0)
    assert ended.code == 2
    assert (
        "CocoDetection.image_cache_gb is 0, expected a number above 0"
        in ended.err
    )
