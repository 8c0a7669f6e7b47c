"""Data as users have them: other ids, odd paths, undefined metrics; the printed resume command works."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from itertools import count

import pytest

from src.runtime.stop import StopRequest
from src.solver.next_commands import python_command
from tests.fixtures.commands import read_log, write_tiny_config
from tests.fixtures.train_here import change_labels, private_copy, train_here
from tests.fixtures.trained_tiny import TRAINED


def test_a_metric_that_the_validation_data_does_not_define_is_refused_before_training(
    tiny_data, tmp_path
):
    """The images are 64 pixels wide and high: no object is larger than 96 x 96."""
    config = write_tiny_config(tmp_path, tiny_data)
    ended = train_here("-c", config, "-u", "best_metric=AP_large")
    assert ended.code == 2
    assert (
        "best_metric is 'AP_large', which" in ended.err
        and "val.json does not define" in ended.err
    )
    assert "set best_metric to one of AP, AP50" in ended.err
    assert not (tmp_path / "run/log.txt").exists()


def test_metrics_without_a_meaning_are_never_written_as_numbers(
    tiny_data, tmp_path
):
    config = write_tiny_config(tmp_path, tiny_data, epochs=1)
    assert train_here("-c", config).code == 0
    (record,) = read_log(tmp_path / "run")
    assert record["AP_large"] is None and record["AP"] is not None
    assert (
        record["test_coco_eval_bbox"][5] == -1
    )  # D-FINE's list, whose readers expect numbers


@pytest.mark.slow
def test_validation_categories_may_have_the_same_names_under_other_ids(
    tiny_data, tmp_path
):
    def other_ids(labels):
        for category in labels["categories"]:
            category["id"] += 100
        for annotation in labels["annotations"]:
            annotation["category_id"] += 100
        labels["categories"].reverse()

    data = private_copy(tiny_data, tmp_path / "data")
    change_labels(data, other_ids, "val")
    scores = []
    for one, folder in (
        (tiny_data, tmp_path / "same"),
        (data, tmp_path / "other"),
    ):
        folder.mkdir()
        config = write_tiny_config(folder, one, epochs=1, seed=1)
        assert (
            train_here("-c", config, "-t", TRAINED, "-u", "num_classes=4").code
            == 0
        )
        scores.append(read_log(folder / "run")[0]["AP"])
    assert scores[0] == scores[1] > 0.1


@pytest.mark.parametrize(
    "name", ["my data #1", "a: b", "- x", "[y]", "null", "données", "~home"]
)
def test_paths_of_any_kind_are_given_on_the_command_line(
    tiny_data, tmp_path, monkeypatch, name
):
    data = private_copy(tiny_data, tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = write_tiny_config(tmp_path, tiny_data, epochs=1)
    whole, home, relative = str(data.folder), f"~/{name}", f"./{name}"
    ended = train_here(
        "-c",
        config,
        f"--output-dir={home}/run",
        "-u",
        f"train_dataloader.dataset.img_folder={home}/images",
        f"train_dataloader.dataset.ann_file={relative}/train.json",
        f"val_dataloader.dataset.img_folder={whole}/images",
        f"val_dataloader.dataset.ann_file={home}/val.json",
    )
    assert ended.code == 0, ended.err
    assert (data.folder / "run/best.pth").exists()


def test_the_command_that_a_stop_prints_resumes_the_run(
    tiny_data, tmp_path, monkeypatch
):
    config, questions = (
        write_tiny_config(tmp_path, tiny_data, epochs=2),
        count(),
    )

    def asked(request):
        if next(questions) >= 8:
            request.signal = signal.SIGINT
        return request.signal is not None

    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "asked", property(asked))
        output = tmp_path / "out put #1"
        ended = train_here(
            "-c",
            config,
            f"--output-dir={output}",
            "--seed=3",
            "-u",
            "print_freq=1",
        )
    assert ended.code == 75, ended.err
    command = shlex.split(ended.err.rpartition("resume with: ")[2])
    assert command[:2] == [python_command(sys.executable), "train.py"]
    ended = train_here(*command[2:])
    assert ended.code == 0 and "resumed from" in ended.out + ended.err, (
        ended.err
    )
    assert [record["epoch"] for record in read_log(output)] == [0, 1]


@pytest.mark.slow
def test_folder_in_another_layout_trains_resumes_and_is_evaluated(
    tiny_data, tmp_path
):
    """The images of the tiny data as YOLO without a part for validation."""
    folder = tmp_path / "data"
    write_yolo_copy(tiny_data, folder)
    config = write_tiny_config(tmp_path, tiny_data, epochs=1)
    command = ("-c", config, "--data", folder)
    ended = train_here(*command)
    assert ended.code == 0, ended.err
    assert f"{folder} is read as YOLO (labels/*.txt)" in ended.out
    assert "of 24 were set aside" in ended.out
    last = tmp_path / "run/last.pth"
    longer = train_here(*command, "-r", last, "-u", "epochs=2", "--override")
    assert longer.code == 0, longer.err
    assert "changed data" not in longer.out
    assert [record["epoch"] for record in read_log(tmp_path / "run")] == [0, 1]
    best = tmp_path / "run/best.pth"
    output = tmp_path / "val"
    evaluated = train_here(
        *command, "--test-only", "-r", best, "--output-dir", output
    )
    assert evaluated.code == 0, evaluated.err
    assert (output / "eval.json").is_file()


def write_yolo_copy(data, folder) -> None:
    """Write the training images of a COCO data set as YOLO, with links instead of copies."""
    content = json.loads((data.folder / "train.json").read_text())
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    names = [category["name"] for category in content["categories"]]
    ids = [category["id"] for category in content["categories"]]
    (folder / "classes.txt").write_text("\n".join(names))
    for image in content["images"]:
        source = data.folder / "images" / image["file_name"]
        (folder / "images" / image["file_name"]).hardlink_to(source)
        lines = []
        for box in content["annotations"]:
            if box["image_id"] == image["id"]:
                x, y, w, h = box["bbox"]
                cx = (x + w / 2) / image["width"]
                cy = (y + h / 2) / image["height"]
                size = f"{w / image['width']} {h / image['height']}"
                number = ids.index(box["category_id"])
                lines.append(f"{number} {cx} {cy} {size}\n")
        stem = image["file_name"].rpartition(".")[0]
        (folder / f"labels/{stem}.txt").write_text("".join(lines))
