"""Every command answers, and refuses what it cannot use in one line."""

import json

import pytest

from tests.fixtures.commands import run_python
from tests.fixtures.tiny import DEMO_CONFIG, ROOT

COMMANDS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "train.py", *ROOT.glob("tools/*/*.py"), *ROOT.glob("reference/*.py")]
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_answers_without_importing_torch(command, tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    result = run_python(command, "--help", PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout


def test_make_synthetic_writes_a_coco_set_with_overlaps_and_empty_images(tmp_path):
    result = run_python(
        "tools/dataset/make_synthetic.py", "--output", tmp_path, "--train", "40", "--val", "3", "--size", "64"
    )
    assert result.returncode == 0, result.stderr
    labels = json.loads((tmp_path / "train.json").read_text())
    counts = [sum(a["image_id"] == image["id"] for a in labels["annotations"]) for image in labels["images"]]
    assert len(counts) == 40 and 0 in counts and max(counts) >= 3
    assert all((tmp_path / "images" / image["file_name"]).exists() for image in labels["images"])


def test_compare_names_a_checkpoint_that_is_not_there(tmp_path):
    result = run_python("tools/visualization/compare.py", "-c", DEMO_CONFIG, "-r", tmp_path / "none.pth")
    assert result.returncode == 4
    assert result.stderr == f"error[4]: {tmp_path / 'none.pth'} does not exist (looked from {ROOT})\n"
