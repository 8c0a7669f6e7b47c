"""The Python code of "Use from Python" in docs/deployment.md runs as it is written.

Only the length of the training is changed, and what makes it small: model, device and workers.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from src.two_names import import_under_both_names
from tests.fixtures.tiny import ROOT
from tests.fixtures.trained_tiny import TRAINED
from tests.fixtures.videos import write_avi

SMALL = (
    'model="best.pth", epochs=1, device="cpu", seed=1, settings={'
    '"pictures": False, "report": False, '
    '"train_dataloader.num_workers": 0, "val_dataloader.num_workers": 0}'
)


def sections() -> dict[str, str]:
    """Return the code below each heading of the section."""
    text = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    section = text.partition("\n## 11. Use from Python\n")[2]
    found = {}
    for part in section.split("\n### ")[1:]:
        heading = part.partition("\n")[0]
        (code,) = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
        found[heading] = code
    return found


@pytest.fixture(scope="module")
def folder(tiny_data, tmp_path_factory) -> Path:
    """A folder with the files that the documents name."""
    folder = tmp_path_factory.mktemp("documents")
    shutil.copytree(tiny_data.folder, folder / "data")
    shutil.copy(TRAINED, folder / "best.pth")
    run = folder / "runs" / "train"
    run.mkdir(parents=True)
    shutil.copy(TRAINED, run / "best.pth")
    images = folder / "images"
    images.mkdir()
    for image in sorted((folder / "data/images").glob("val_*.jpg")):
        shutil.copy(image, images)
    shutil.copy(images / "val_00000.jpg", folder / "image.jpg")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Return a function that runs the code below a heading, with the names of earlier code."""
    monkeypatch.chdir(folder)
    import_under_both_names()

    def run(heading: str, *needed: str) -> dict[str, Any]:
        for name in needed:
            pytest.importorskip(name, reason=f"{name} is not installed")
        if "cv2" in needed:
            write_avi(folder / "clip.avi", frames=4)
        names: dict[str, Any] = {}
        code = "from dfine_dinov3 import Detector, train\n"
        code += 'detector = Detector("best.pth", device="cpu")\n'
        code += sections()[heading]
        code = code.replace('model="s", epochs=50', SMALL)
        exec(compile(code, heading, "exec"), names)
        return names

    return run


@pytest.mark.slow
def test_training_evaluation_and_export(run):
    names = run("Train, evaluate and export", "onnxscript", "onnxruntime")
    assert names["metrics"]["AP"] == pytest.approx(
        names["result"].metrics["AP"], abs=1e-6
    )
    assert names["file"].name == "best.onnx"


def test_predictions(run, capsys):
    names = run("Predict", "cv2")
    assert len(names["many"]) == 8
    out = capsys.readouterr().out
    assert "1 detection: 1 ring (64 x 64)" in out
    assert out.count("(64 x 48)") == 4


def test_conversions(run, folder):
    names = run("Convert predictions", "pandas")
    assert names["table"]["name"].tolist() == ["ring"]
    assert (folder / "crop0.png").is_file()
    assert (folder / "found.jpg").is_file()


def test_callbacks(run, capsys):
    names = run("Callbacks")
    row = names["result"].history[0]
    assert f"1 {row['AP']} True" in capsys.readouterr().out


def test_tracking(run, monkeypatch):
    names = run("Track objects", "cv2", "trackers")
    assert len(names["tracked"].tracker_id) == len(names["tracked"])


def test_counting_in_a_zone(run, capsys):
    run("Count objects in a zone", "cv2", "supervision")
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_every_section_is_tested():
    tested = Path(__file__).read_text(encoding="utf-8")
    for heading in sections():
        assert f'run("{heading}"' in tested
