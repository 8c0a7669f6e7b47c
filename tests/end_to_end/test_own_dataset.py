"""A custom data set: the code of docs/data.md, unchanged, trains, resumes, evaluates and saves."""

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from src.core import ConfigError, user_files
from src.core.detection_data import DetectionData
from src.core.ground_truth import Objects
from src.core.registry import register
from src.inference import Detector
from tests.fixtures.commands import read_log, run_python
from tests.fixtures.tiny import ROOT, TINY_MODEL, merged
from tests.fixtures.train_here import train_here

GUIDE = "A data set of your own"


def blocks(page: str, language: str, heading: str = GUIDE) -> list[str]:
    """Return the code blocks of a section of a page."""
    section = (
        (ROOT / page)
        .read_text()
        .split(f"## {heading}", 1)[1]
        .split("\n## ", 1)[0]
    )
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def write_table(labels: Path, table: Path) -> None:
    """Write the boxes of a COCO file as the table that the page describes."""
    content = json.loads(labels.read_text())
    names = {
        category["id"]: category["name"] for category in content["categories"]
    }
    files = {image["id"]: image["file_name"] for image in content["images"]}
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "class", "x1", "y1", "x2", "y2"])
        for record in content["annotations"]:
            x, y, w, h = record["bbox"]
            writer.writerow(
                [
                    files[record["image_id"]],
                    names[record["category_id"]],
                    x,
                    y,
                    x + w,
                    y + h,
                ]
            )


@pytest.fixture
def own_run(tiny_data, tmp_path, monkeypatch) -> Path:
    """Write what the page shows, and a configuration that shrinks its detector; return that."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "DATA").mkdir()
    (tmp_path / "DATA/images").symlink_to(tiny_data.folder / "images")
    for part in ("train", "val"):
        write_table(
            tiny_data.folder / f"{part}.json", tmp_path / f"DATA/{part}.csv"
        )
    (tmp_path / "my_data.py").write_text(*blocks("docs/data.md", "python"))
    (tmp_path / "my_run.yml").write_text(*blocks("docs/data.md", "yaml"))
    small = {
        "__include__": ["my_run.yml"],
        "epochs": 1,
        "output_dir": "run",
        "pictures": True,
    }
    loaders = {
        f"{part}_dataloader": {"total_batch_size": 4, "num_workers": 0}
        for part in ("train", "val")
    }
    monkeypatch.delitem(
        sys.modules, "my_data", raising=False
    )  # of another test
    monkeypatch.delitem(user_files._imported, "my_data", raising=False)
    monkeypatch.setattr(
        sys, "path", list(sys.path)
    )  # the folder of this test leaves it with the test
    config = tmp_path / "tiny.yml"
    config.write_text(yaml.safe_dump(merged(small, loaders, TINY_MODEL)))
    monkeypatch.chdir(tmp_path)
    return config


@pytest.mark.slow
def test_the_data_set_of_the_page_trains_resumes_evaluates_and_is_saved(
    own_run, tmp_path
):
    ended = train_here("-c", own_run, "--seed=0")
    assert ended.code == 0, ended.err
    assert (tmp_path / "run/pictures/validation_epoch0001.jpg").exists()

    ended = train_here(
        "-c", own_run, "--seed=0", "-r", "auto", "--override", "-u", "epochs=2"
    )
    assert ended.code == 0 and "resumed from" in ended.out + ended.err, (
        ended.err
    )
    records = read_log(tmp_path / "run")
    assert [record["epoch"] for record in records] == [0, 1] and records[1][
        "AP"
    ] is not None

    ended = train_here(
        "-c", own_run, "--test-only", "-r", tmp_path / "run/best.pth"
    )
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "run/eval.json").read_text())["AP"] == max(
        r["AP"] for r in records
    )

    detector = Detector.from_checkpoint(tmp_path / "run/best.pth")
    assert [entry["name"] for entry in detector.classes] == [
        "disc",
        "square",
        "triangle",
        "ring",
    ]

    image = next((tmp_path / "DATA/images").glob("val_*"))
    used = run_python(
        ROOT / "tools/inference/torch_inf.py",
        "-r",
        tmp_path / "run/best.pth",
        "-i",
        image,
        cwd=tmp_path / "run",
    )
    assert used.returncode == 0, (
        used.stderr
    )  # in a process that does not know the class


def test_the_data_of_a_resumed_run_is_recognized(own_run, tmp_path):
    assert train_here("-c", own_run, "--seed=0").code == 0
    table = tmp_path / "DATA/train.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    ended = train_here("-c", own_run, "--seed=0", "-r", "auto")
    assert (
        ended.code == 3
        and "TableDetection: labels or size of 1 image changed" in ended.err
    )


def test_a_member_that_is_missing_is_named_with_what_it_returns(
    own_run, tmp_path
):
    source = (tmp_path / "my_data.py").read_text()
    (tmp_path / "my_data.py").write_text(
        source.replace("def objects", "def boxes")
    )
    ended = train_here("-c", own_run)
    assert ended.code == 2
    assert (
        "TableDetection cannot be used as a data set: "
        "it lacks objects (returns the `Objects` of an image, without reading the image); "
        "see 'A data set of your own' in docs/data.md"
    ) in ended.err


def test_a_plain_torch_data_set_is_refused_with_what_it_lacks(
    own_run, tmp_path
):
    (tmp_path / "my_data.py").write_text(
        "import torch\nfrom src.core import register\n\n\n@register()\n"
        "class TableDetection(torch.utils.data.Dataset):\n"
        "    def __init__(self, folder, table, transforms=None): ...\n"
        "    def __len__(self): return 8\n    def __getitem__(self, index): ...\n"
    )
    ended = train_here("-c", own_run)
    assert ended.code == 2
    assert (
        "lacks class_names (a list with the names of the classes), objects (returns"
        in ended.err
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "import no_such_package",
            "my_data.py cannot be imported: ModuleNotFoundError",
        ),
        ("class", "my_data.py cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_is_a_fault_of_the_configuration(
    own_run, tmp_path, source, expected
):
    (tmp_path / "my_data.py").write_text(source)
    ended = train_here("-c", own_run)
    assert (
        ended.code == 2
        and expected in ended.err
        and "my_run.yml:2" in ended.err
    )


def test_the_chinese_page_has_the_same_code():
    assert blocks("docs/data_cn.md", "python", "自定义数据集") == blocks(
        "docs/data.md", "python"
    )


class Finished(DetectionData):
    """Two images that are finished already, the second one without an object."""

    class_names = ("cat", "dog")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        found = self.objects(index)
        return torch.zeros(3, 64, 64), {
            "boxes": found.boxes / 64,
            "labels": found.labels,
            "image_id": torch.tensor([index]),
            "orig_size": torch.tensor([64, 64]),
        }

    def objects(self, index):
        count = 1 - index
        return Objects(
            torch.tensor([[8.0, 8, 24, 40]]).repeat(count, 1),
            torch.ones(count, dtype=torch.int64),
        )


def test_finished_images_and_their_truth_train_and_evaluate(tmp_path):
    register("Finished", force=True)(Finished)
    loader = {
        "type": "DataLoader",
        "dataset": {"type": "Finished"},
        "num_workers": 0,
        "total_batch_size": 2,
    }
    include = str(ROOT / "configs/dfine/demo/dfine_dinov3_demo.yml")
    run = {
        "__include__": [include],
        "epochs": 1,
        "output_dir": str(tmp_path / "run"),
        "num_classes": None,
    }
    loaders = {
        part: {**loader, "collate_fn": {"type": "BatchImageCollateFunction"}}
        for part in ("train_dataloader", "val_dataloader")
    }
    config = tmp_path / "tiny.yml"
    config.write_text(yaml.safe_dump(merged(TINY_MODEL, run, loaders)))
    ended = train_here("-c", config)
    assert ended.code == 0, ended.err
    (record,) = read_log(tmp_path / "run")
    assert record["AP"] is not None


def test_classes_in_another_order_than_a_model_has_are_refused_where_labels_cannot_change():
    with pytest.raises(
        ConfigError,
        match="^Finished has the classes cat, dog, for which the run uses the labels",
    ):
        Finished().use_labels([1, 0])


def test_a_file_that_ends_the_program_is_a_fault_of_the_configuration(
    own_run, tmp_path
):
    (tmp_path / "my_data.py").write_text("raise SystemExit(0)")
    ended = train_here("-c", own_run)
    assert (
        ended.code == 2
        and "my_data.py cannot be imported: SystemExit" in ended.err
    )


def test_two_files_of_one_name_are_refused(own_run, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/my_data.py").write_text("")
    config = tmp_path / "my_run.yml"
    config.write_text(
        config.read_text().replace(
            "[my_data.py]", "[my_data.py, sub/my_data.py]"
        )
    )
    ended = train_here("-c", own_run)
    assert (
        ended.code == 2 and "has the same name; rename one of them" in ended.err
    )


def test_a_mistake_in_a_data_set_ends_the_run_before_training_with_its_place(
    own_run, tmp_path
):
    path = tmp_path / "my_data.py"
    path.write_text(
        path.read_text().replace(
            "return Objects(boxes, ", "return Objects(boxes[:, :2], "
        )
    )
    ended = train_here("-c", own_run)
    assert ended.code == 3
    assert (
        "TableDetection.objects(0) returned boxes of shape" in ended.err
        and "Traceback" not in ended.err
    )
