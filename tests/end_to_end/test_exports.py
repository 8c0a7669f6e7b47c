"""`dfine train --data` on exports of annotation tools, then commands that get the run folder alone."""

import json
from pathlib import Path

import pytest

from src import Detector
from src.cli import main as dfine
from tests.fixtures.exports import EXPORTS
from tests.fixtures.run_here import call_here

SMALL = ("--model", "tiny", "--epochs", "1", "--imgsz", "64", "-d", "cpu")
NO_WORKERS = (
    "-u",
    "train_dataloader.num_workers=0",
    "val_dataloader.num_workers=0",
)
CLASSES = {"disc", "square", "triangle", "ring"}


def command(*arguments):
    """Run `dfine` with these arguments; it must succeed."""
    ended = call_here(dfine.main, "dfine", *arguments)
    assert ended.code == 0, ended.err
    return ended


@pytest.mark.parametrize("name", EXPORTS)
def test_a_folder_is_enough_to_train_and_the_run_folder_for_the_rest(
    name, tiny_data, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    data.mkdir()
    EXPORTS[name](tiny_data, data)
    monkeypatch.chdir(tmp_path)
    command("train", "--data", data, *SMALL, *NO_WORKERS)
    run = Path("runs/train")
    for file in ("best.pth", "results.csv", "curves.png", "report.html"):
        assert (run / file).stat().st_size > 0, file
    assert set(Detector(run, device="cpu").names.values()) == CLASSES
    command("val", run, "-d", "cpu", *NO_WORKERS)
    image = sorted(data.rglob("*.jpg"))[0]
    command("predict", run, image, "-d", "cpu", "--output", "found")
    predictions = json.loads(Path("found/predictions.json").read_text())
    assert predictions is not None
