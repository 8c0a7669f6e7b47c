"""Converted labels are kept, made again when something changes, and written by one process at a time."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.data.preparation import any_dataset
from src.data.preparation.any_dataset import find_dataset
from src.data.preparation.cache_folder import held
from tests.fixtures.golden import ROOT
from tests.fixtures.label_formats import write_images, yolo_lines
from tests.fixtures.layouts import (
    coco_one_file,
    voc_labelimg,
    write_coco,
    yolo_flat,
    yolo_roboflow,
)

REUSED = "labels that were converted earlier are used"


def is_reused(path: Path, **settings) -> bool:
    return any(
        REUSED in line for line in find_dataset(path, **settings).remarks
    )


@pytest.mark.parametrize("write", [coco_one_file, voc_labelimg, yolo_flat])
def test_unchanged_data_are_converted_once(tmp_path, write):
    write(tmp_path)
    first = find_dataset(tmp_path)
    second = find_dataset(tmp_path)
    assert not any(REUSED in line for line in first.remarks)
    assert any(REUSED in line for line in second.remarks)
    assert (second.train_ann, second.val_ann) == (
        first.train_ann,
        first.val_ann,
    )
    assert second.remarks[:-1] == first.remarks[:-1]
    assert second.class_names == first.class_names


def test_warnings_are_kept(tmp_path):
    yolo_roboflow(tmp_path)
    (tmp_path / "train/labels/gone.txt").write_text(yolo_lines("a"))
    assert find_dataset(tmp_path).warnings == find_dataset(tmp_path).warnings
    assert len(find_dataset(tmp_path).warnings) == 1


def changed_label(root: Path) -> None:
    (root / "train/labels/a.txt").write_text("1 .5 .5 .5 .5\n")


def later_label(root: Path) -> None:
    os.utime(root / "train/labels/a.txt", (1, 1))


def removed_label(root: Path) -> None:
    (root / "train/labels/a.txt").unlink()


def added_label(root: Path) -> None:
    (root / "valid/labels/c.txt").write_text("1 .5 .5 .5 .5\n")


def added_image(root: Path) -> None:
    write_images(root / "train/images", "c")


def changed_image(root: Path) -> None:
    (root / "train/images/b.png").rename(root / "train/images/a.png")


def changed_names(root: Path) -> None:
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("cat", "tabby"))


def damaged_cache(root: Path) -> None:
    (path,) = root.glob(".dfine_cache/*/train.json")
    path.write_text("{}")


def damaged_state(root: Path) -> None:
    (path,) = root.glob(".dfine_cache/*/state.json")
    path.write_text(json.dumps({"digest": 3}))


@pytest.mark.parametrize(
    "change",
    [
        changed_label,
        later_label,
        removed_label,
        added_label,
        added_image,
        changed_image,
        changed_names,
        damaged_cache,
        damaged_state,
    ],
)
def test_changed_data_are_converted_again(tmp_path, change):
    yolo_roboflow(tmp_path)
    (tmp_path / "valid/labels/c.txt").unlink()
    find_dataset(tmp_path)
    assert is_reused(tmp_path)
    change(tmp_path)
    assert not is_reused(tmp_path)
    assert is_reused(tmp_path)


def test_changed_coco_file_is_split_again(tmp_path):
    coco_one_file(tmp_path)
    find_dataset(tmp_path)
    write_coco(tmp_path / "annotations.json", "ab")
    assert not is_reused(tmp_path)


def test_other_options_have_their_own_labels(tmp_path):
    yolo_flat(tmp_path)
    first = find_dataset(tmp_path)
    other = find_dataset(tmp_path, seed=1)
    assert first.train_ann != other.train_ann
    assert is_reused(tmp_path) and is_reused(tmp_path, seed=1)


def test_results_of_runs_inside_the_data_set_change_nothing(tmp_path):
    yolo_roboflow(tmp_path)
    find_dataset(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/log.txt").write_text("{}")
    assert is_reused(tmp_path)


def test_cache_may_be_given(tmp_path):
    yolo_flat(tmp_path / "data")
    found = find_dataset(tmp_path / "data", cache=tmp_path / "cache")
    assert found.train_ann.is_relative_to(tmp_path / "cache")
    assert not (tmp_path / "data/.dfine_cache").exists()


def test_data_set_that_is_not_writable_uses_the_cache_of_the_user(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yolo_flat(tmp_path / "data")
    # a file in the place of the folder: it works for root, too, to whom every folder is writable
    (tmp_path / "data/.dfine_cache").touch()
    found = find_dataset(tmp_path / "data")
    assert found.train_ann.is_relative_to(tmp_path / "home/dfine_dinov3")
    assert is_reused(tmp_path / "data")


def test_link_in_the_place_of_the_cache_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yolo_flat(tmp_path / "data")
    (tmp_path / "outside").mkdir()
    (tmp_path / "data/.dfine_cache").symlink_to(tmp_path / "outside")
    find_dataset(tmp_path / "data")
    assert list((tmp_path / "outside").iterdir()) == []


def test_place_that_cannot_be_written_is_named(tmp_path):
    yolo_flat(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/.* cannot be written to"):
        find_dataset(tmp_path / "data", cache=tmp_path / "file")


def test_failed_conversion_leaves_nothing_to_use(tmp_path, monkeypatch):
    yolo_flat(tmp_path)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(any_dataset, "write_state", fail)
        with pytest.raises(KeyboardInterrupt):
            find_dataset(tmp_path)
    assert not is_reused(tmp_path)


RANK = """
import sys
from src.data.preparation.any_dataset import find_dataset
print(any("used" in line for line in find_dataset(sys.argv[1]).remarks[-1:]))
"""


@pytest.mark.slow
def test_of_several_ranks_one_converts_and_the_others_wait(tmp_path):
    yolo_flat(tmp_path)
    ranks = []
    for _ in range(3):
        command = [sys.executable, "-c", RANK, str(tmp_path)]
        ranks.append(
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        )
    answers = [rank.communicate()[0].strip() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert sorted(answers) == [b"False", b"True", b"True"]


def test_lock_is_held_by_one_at_a_time(tmp_path):
    entered = []

    def enter():
        with held(tmp_path):
            entered.append(True)

    with held(tmp_path):
        other = threading.Thread(target=enter)
        other.start()
        other.join(0.2)
        assert entered == []
    other.join(10)
    assert entered == [True]
