"""Fifteen changes of data between parts of a run: all are reported; accepted ones restart the epoch (K5)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from src.runtime.process import explain
from src.runtime.weight_files import read_tensor_file, write_tensor_file
from src.solver.checkpoint import SET_ASIDE
from tests.faults.runs import run
from tests.fixtures.slow import slow
from tests.fixtures.tiny import SyntheticData
from tests.fixtures.train_here import change_labels, private_copy

SHORT = {
    "epochs": 3,
    "grad_accum_steps": 1,
    "train_dataloader": {"collate_fn": {"stop_epoch": None}},
}
STOPPED_AFTER = 9
"""Steps: in the second epoch of six steps each."""

Labels = dict[str, Any]


@pytest.fixture(scope="module")
def stopped(tiny_data, tmp_path_factory) -> tuple[SyntheticData, Path]:
    """Data, and the folder of a run on it that was stopped in its second epoch."""
    folder = tmp_path_factory.mktemp("stopped")
    data = private_copy(tiny_data, folder / "data")
    assert not run(data, folder / "run", stop_after=STOPPED_AFTER, **SHORT)
    return data, folder / "run"


@pytest.fixture
def own(stopped, tmp_path) -> tuple[SyntheticData, Path]:
    """Copies of both for one test."""
    data = private_copy(stopped[0], tmp_path / "data")
    return data, Path(shutil.copytree(stopped[1], tmp_path / "run"))


def resume(
    data: SyntheticData, folder: Path, **overrides: Any
) -> tuple[int, str]:
    try:
        run(data, folder, **{**SHORT, **overrides})
    except BaseException as error:
        return explain(error)
    return 0, "done"


def more_images(labels: Labels) -> None:
    labels["images"].append(
        {"id": 900, "file_name": "val_00000.jpg", "width": 64, "height": 64}
    )


def other_image(labels: Labels) -> None:
    labels["images"][2]["file_name"] = "val_00003.jpg"


def without_image(labels: Labels) -> None:
    gone = labels["images"].pop()["id"]
    labels["annotations"] = [
        a for a in labels["annotations"] if a["image_id"] != gone
    ]


def other_order(labels: Labels) -> None:
    labels["images"].reverse()


def first(**values: Any) -> Callable[[Labels], None]:
    return lambda labels: labels["annotations"][0].update(values)


def renamed_class(labels: Labels) -> None:
    labels["categories"][0]["name"] = "plate"


def swapped_names(labels: Labels) -> None:
    one, two = labels["categories"][:2]
    one["name"], two["name"] = two["name"], one["name"]


CHANGES: dict[str, tuple[dict[str, Callable[[Labels], Any]], str]] = {
    "a box removed": (
        {"train": lambda x: x["annotations"].pop(0)},
        "labels or size of 1 image changed (train_",
    ),
    "a box added": (
        {
            "train": lambda x: x["annotations"].append(
                {**x["annotations"][0], "id": 999, "bbox": [1, 1, 9, 9]}
            )
        },
        "labels or size of 1 image changed",
    ),
    "a box moved by a pixel": (
        {"train": first(bbox=[1, 2, 20, 20])},
        "labels or size of 1 image changed",
    ),
    "a box of another class": (
        {"train": first(category_id=8)},
        "labels or size of 1 image changed",
    ),
    "a box made a crowd": (
        {"train": first(iscrowd=1)},
        "labels or size of 1 image changed",
    ),
    "a box to be ignored": (
        {"train": first(ignore=1)},
        "labels or size of 1 image changed",
    ),
    "images added": ({"train": more_images}, "1 image added (val_00000.jpg)"),
    "images removed": ({"train": without_image}, "1 image removed"),
    "another image": (
        {"train": other_image},
        "1 image added (val_00003.jpg); ",
    ),
    "images in another order": (
        {"train": other_order},
        "the order of the images has changed",
    ),
    "boxes of all images": (
        {
            "train": lambda x: [
                a.update(bbox=[3, 3, 20, 20]) for a in x["annotations"]
            ]
        },
        "changed (train_",
    ),
    "a class renamed": (
        {"train": renamed_class, "val": renamed_class},
        "has classes that",
    ),
    "names swapped": (
        {"train": swapped_names, "val": swapped_names},
        "classes were ",
    ),
    "a validation box removed": (
        {"val": lambda x: x["annotations"].pop(0)},
        "val.json: labels or size of 1 image changed (val_",
    ),
    "validation images removed": (
        {"val": without_image},
        "val.json: 1 image removed",
    ),
}


def test_there_are_fifteen_changes():
    assert len(CHANGES) == 15


def change(data: SyntheticData, name: str) -> None:
    for part, function in CHANGES[name][0].items():
        change_labels(data, function, part)


@pytest.mark.parametrize("name", CHANGES)
def test_changed_data_is_refused_with_what_changed(own, name):
    data, folder = own
    before = (folder / "last.pth").read_bytes()
    change(data, name)
    code, message = resume(data, folder)
    assert code in (3, 4) and CHANGES[name][1] in message, message
    assert (folder / "last.pth").read_bytes() == before


UNCHANGED: dict[str, Callable[[Labels], Any]] = {
    "annotation ids": lambda x: [
        a.update(id=a["id"] + 500) for a in x["annotations"]
    ],
    "keys that nobody reads": lambda x: [
        a.update(note="x", segmentation=[[1, 2, 3]]) for a in x["annotations"]
    ],
    "licences": lambda x: x.update(info={"version": 2}, licenses=[]),
}


@pytest.mark.parametrize(
    "name", [*list(UNCHANGED)[:1], *slow(*list(UNCHANGED)[1:])]
)
def test_what_is_not_learned_may_change(own, name):
    data, folder = own
    change_labels(data, UNCHANGED[name])
    assert resume(data, folder) == (0, "done")


def test_data_may_move_to_another_folder(own, tmp_path):
    data, folder = own
    moved = SyntheticData(
        Path(shutil.move(data.folder, tmp_path / "elsewhere"))
    )
    assert resume(moved, folder) == (0, "done")


def test_changed_data_that_is_accepted_restarts_the_epoch_and_forgets_the_best_score(
    own, caplog
):
    data, folder = own
    caplog.set_level("INFO", "dfine")
    old_best = (folder / "best.pth").read_bytes()
    change(data, "a box removed")
    assert not run(
        data, folder, stop_after=STOPPED_AFTER, override=True, **SHORT
    )
    assert (
        "resuming with changed data: " in caplog.text
        and "labels or size of 1 image changed" in caplog.text
    )
    assert (
        "resumed from" in caplog.text
        and "epoch 2, step 0 of it, best AP None" in caplog.text
    )
    state = read_tensor_file(folder / "last.pth")
    assert (state["progress"]["step"], state["progress"]["total_steps"]) == (
        3,
        9,
    )
    assert state["best"]["score"] is None
    assert (folder / f"{SET_ASIDE}.pth").read_bytes() == old_best and not (
        folder / "best.pth"
    ).exists()
    assert resume(data, folder) == (
        0,
        "done",
    )  # the changed data is that of the run from now on
    assert read_tensor_file(folder / "best.pth")["meta"]["epoch"] >= 1


def test_a_state_of_before_data_were_noted_is_resumed_with_a_warning(
    own, caplog
):
    data, folder = own
    state = read_tensor_file(folder / "last.pth")
    for key in ("data", "first_loss", "explained", "unreadable"):
        del state[key]
    write_tensor_file(folder / "last.pth", state)
    change(data, "a box removed")
    assert resume(data, folder) == (0, "done")
    assert "cannot tell if they changed" in caplog.text


def test_what_decides_about_later_epochs_is_part_of_the_state(own):
    data, folder = own
    state = read_tensor_file(folder / "last.pth")
    assert (
        state["first_loss"] > 0
        and state["explained"] is False
        and state["unreadable"] == []
    )
    state["explained"], state["first_loss"], state["unreadable"] = (
        True,
        123.0,
        [5],
    )
    write_tensor_file(folder / "last.pth", state)
    code, message = resume(data, folder)
    assert (
        code == 3 and "1 of 24 images" in message
    )  # none may be unreadable of so few, and one is remembered


@pytest.mark.slow
def test_another_input_size_is_resumed_on_request(own):
    data, folder = own
    code, message = resume(data, folder, eval_spatial_size=[96, 96])
    assert code == 2 and "eval_spatial_size" in message
    assert resume(data, folder, eval_spatial_size=[96, 96], override=True) == (
        0,
        "done",
    )
    anchors = read_tensor_file(folder / "last.pth")["model"]["decoder.anchors"]
    assert (
        anchors.shape[1] == 12 * 12 + 6 * 6 + 3 * 3
        and not torch.isnan(anchors).any()
    )


def test_a_resumed_run_has_the_licences_of_the_run_and_no_others(own):
    data, folder = own
    assert resume(data, folder) == (0, "done")
    assert read_tensor_file(folder / "last.pth")["meta"]["licences"] == []
    assert (
        json.loads(
            json.dumps(
                read_tensor_file(folder / "best.pth")["meta"]["licences"]
            )
        )
        == []
    )
