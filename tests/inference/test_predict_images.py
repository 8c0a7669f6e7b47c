"""Predictions of image files are written as pictures and COCO results."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from src.core import ConfigError, DataError, NumericsError
from src.inference import PredictionSettings
from src.inference.predict_source import predict_source
from src.solver import DetSolver
from tests.fixtures.coco_files import write_coco
from tests.fixtures.tiny import tiny_config
from tests.fixtures.trained_tiny import TRAINED


def entries(folder) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


def test_the_results_scored_by_pycocotools_give_the_ap_of_an_evaluation(
    detector, tiny_data, tmp_path
):
    expected = DetSolver(
        tiny_config(
            tiny_data, tmp_path / "run", resume=str(TRAINED), test_only=True
        ),
        torch.device("cpu"),
    ).val()
    results = predict_source(
        detector,
        str(tiny_data.folder / "images"),
        tmp_path / "found",
        annotations=tiny_data.folder / "val.json",
        draw=False,
        settings=PredictionSettings(threshold=0.0),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tiny_data.folder / "val.json")
        run = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        run.evaluate(), run.accumulate(), run.summarize()
    assert expected["AP"] > 0.1
    assert run.stats[0] == pytest.approx(
        expected["AP"], abs=1e-3
    ) and run.stats[1] == pytest.approx(expected["AP50"], abs=1e-3)


def test_a_folder_gives_a_picture_for_each_image_and_numbered_entries(
    detector, val_images, tmp_path
):
    source = tmp_path / "images"
    (source / "deep").mkdir(parents=True)
    shutil.copy(val_images[0], source / "a.jpg")
    shutil.copy(val_images[1], source / "deep/b.jpg")
    Image.open(val_images[0]).save(source / "a.png")
    predict_source(
        detector,
        str(source),
        tmp_path / "found",
        settings=PredictionSettings(threshold=0.1),
    )
    assert sorted(
        str(p.relative_to(tmp_path / "found"))
        for p in (tmp_path / "found").rglob("*.jpg")
    ) == [
        "a.jpg.jpg",
        "a.png.jpg",
        "deep/b.jpg",
    ]
    assert {
        (e["image_id"], e["file_name"]) for e in entries(tmp_path / "found")
    } == {
        (1, "a.jpg"),
        (2, "a.png"),
        (3, "deep/b.jpg"),
    }


def test_pictures_of_an_earlier_run_within_the_folder_are_left_out(
    detector, val_images, tmp_path
):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    for _ in range(2):
        predict_source(
            detector,
            str(tmp_path),
            tmp_path / "found",
            settings=PredictionSettings(threshold=0.0),
        )
        assert {e["file_name"] for e in entries(tmp_path / "found")} == {
            "a.jpg"
        }


def test_one_image_may_be_requested(detector, val_images, tmp_path):
    predict_source(
        detector,
        str(val_images[0]),
        tmp_path,
        settings=PredictionSettings(threshold=0.1),
    )
    assert (tmp_path / val_images[0].name).exists() and entries(tmp_path)[0][
        "file_name"
    ] == val_images[0].name


def test_no_more_images_than_requested_are_read(detector, val_images, tmp_path):
    predict_source(
        detector,
        str(val_images[0].parent),
        tmp_path,
        frames=2,
        settings=PredictionSettings(threshold=0.0),
        draw=False,
    )
    assert {e["image_id"] for e in entries(tmp_path)} == {1, 2}
    assert not list(tmp_path.glob("*.jpg"))


def test_an_unreadable_image_is_reported_after_all_others_were_written(
    detector, val_images, tmp_path
):
    source = tmp_path / "images"
    source.mkdir()
    (source / "a.jpg").write_bytes(b"not an image")
    shutil.copy(val_images[0], source / "b.jpg")
    with pytest.raises(
        DataError, match="1 of 2 images could not be read.*a.jpg"
    ):
        predict_source(
            detector,
            str(source),
            tmp_path / "found",
            settings=PredictionSettings(threshold=0.0),
        )
    assert {e["file_name"] for e in entries(tmp_path / "found")} == {"b.jpg"}


def test_pictures_never_replace_the_images_that_they_show(
    detector, val_images, tmp_path
):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    before = (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(ConfigError, match="among the images"):
        predict_source(detector, str(tmp_path), tmp_path)
    assert (tmp_path / "a.jpg").read_bytes() == before


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_an_image_is_turned_only_if_its_labels_require_it(
    detector, tmp_path, size
):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (96, 64), (200, 30, 30)).save(
        tmp_path / "a.jpg", exif=turned
    )
    labels = write_coco(
        tmp_path,
        {
            "images": [
                {
                    "id": 3,
                    "file_name": "a.jpg",
                    "width": size[0],
                    "height": size[1],
                }
            ],
            "annotations": [],
            "categories": [{"id": 1, "name": "disc"}],
        },
        draw=False,
    )
    predict_source(
        detector,
        str(tmp_path),
        tmp_path / "found",
        annotations=labels,
        settings=PredictionSettings(threshold=0.0),
    )
    assert Image.open(tmp_path / "found/a.jpg").size == (
        5 * size[0],
        5 * size[1],
    )


def test_a_very_long_image_is_drawn_as_it_is(detector, tmp_path):
    Image.new("RGB", (20000, 10)).save(tmp_path / "long.png")
    predict_source(
        detector,
        str(tmp_path / "long.png"),
        tmp_path / "found",
        settings=PredictionSettings(threshold=0.0),
    )
    assert Image.open(tmp_path / "found/long.jpg").size == (20000, 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["dec_score_head", "dec_bbox_head"])
def test_weights_that_overflow_are_an_error_and_not_no_objects(
    detector, val_images, tmp_path, monkeypatch, part, value
):
    def overflow(module, arguments, result):
        return torch.full_like(result, value)

    heads = [
        module
        for name, module in detector.engine.model.named_modules()
        if name.endswith(part)
    ]
    hooks = [
        layer.register_forward_hook(overflow)
        for head in heads
        for layer in head
    ]
    try:
        assert hooks
        with pytest.raises(
            NumericsError,
            match=f"that are not finite for image 1 .*{val_images[0].name}",
        ):
            predict_source(detector, str(val_images[0]), tmp_path, draw=False)
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    "annotations, source",
    [
        (
            {
                "images": [
                    {
                        "id": 2**60 + 1,
                        "file_name": "a.jpg",
                        "width": 64,
                        "height": 64,
                    }
                ]
            },
            ".",
        ),
        (
            {
                "images": [
                    {
                        "id": 2**60 + 1,
                        "file_name": "a.jpg",
                        "width": 64,
                        "height": 64,
                    }
                ],
                "annotations": [],
            },
            ".",
        ),
    ],
    ids=["without annotations", "without boxes"],
)
def test_a_list_of_images_without_boxes_is_enough(
    detector, val_images, tmp_path, annotations, source
):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    (tmp_path / "labels.json").write_text(json.dumps(annotations))
    predict_source(
        detector,
        str(tmp_path / source),
        tmp_path / "found",
        annotations=tmp_path / "labels.json",
        settings=PredictionSettings(threshold=0.0),
        draw=False,
    )
    assert {entry["image_id"] for entry in entries(tmp_path / "found")} == {
        2**60 + 1
    }


@pytest.mark.parametrize("name", ["predictions.json", "a.jpg"])
def test_files_of_others_in_the_output_folder_are_not_replaced(
    detector, val_images, tmp_path, name
):
    (tmp_path / "images").mkdir()
    shutil.copy(val_images[0], tmp_path / "images/a.jpg")
    (tmp_path / "found").mkdir()
    foreign = tmp_path / "found" / name
    foreign.write_bytes(
        val_images[1].read_bytes() if name == "a.jpg" else b'{"images": []}'
    )
    before = foreign.read_bytes()
    with pytest.raises(
        ConfigError,
        match=f"{name} would be replaced, but this project did not write it",
    ):
        predict_source(detector, str(tmp_path / "images"), tmp_path / "found")
    assert foreign.read_bytes() == before
    foreign.unlink()
    for _ in range(2):  # results of this project may be replaced
        predict_source(detector, str(tmp_path / "images"), tmp_path / "found")


def test_images_of_a_users_own_below_the_output_are_not_left_out(
    detector, val_images, tmp_path
):
    (tmp_path / "2024").mkdir()
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    shutil.copy(val_images[1], tmp_path / "2024/b.jpg")
    with pytest.raises(ConfigError, match="2024; choose another --output"):
        predict_source(detector, str(tmp_path), tmp_path / "2024")
    predict_source(
        detector,
        str(tmp_path),
        tmp_path / "2024",
        draw=False,
        settings=PredictionSettings(threshold=0.0),
    )
    assert {e["file_name"] for e in entries(tmp_path / "2024")} == {
        "a.jpg",
        "2024/b.jpg",
    }


def test_pictures_are_not_written_through_a_link_out_of_the_output(
    detector, val_images, tmp_path
):
    (tmp_path / "images/sub").mkdir(parents=True)
    shutil.copy(val_images[0], tmp_path / "images/sub/a.jpg")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "found").mkdir()
    (tmp_path / "found/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="leads out of .* by a symbolic link"):
        predict_source(detector, str(tmp_path / "images"), tmp_path / "found")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_image_behind_a_broken_link_is_missing_and_not_left_out(
    detector, val_images, tmp_path
):
    shutil.copy(val_images[0], tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(
        DataError, match="1 of 2 images could not be read.*b.jpg"
    ):
        predict_source(detector, str(tmp_path), tmp_path / "found")


def test_an_image_with_a_long_name_is_drawn(detector, val_images, tmp_path):
    name = "x" * 250 + ".jpg"
    shutil.copy(val_images[0], tmp_path / name)
    predict_source(detector, str(tmp_path), tmp_path / "found")
    assert (tmp_path / "found" / name).exists()
