"""engine="auto" takes the fastest engine that agrees with torch, and remembers it."""

import json
import logging
from pathlib import Path

import pytest

from src import Detector
from src.core import ConfigError
from src.core.errors import ResourceError
from src.inference import engine_choice
from src.inference.engine_choice import fastest_engine
from src.inference.exported_engines import OnnxEngine
from tests.fixtures.trained_tiny import TRAINED

NEEDED = ("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(autouse=True)
def only_onnx_runtime(monkeypatch):
    """Leave OpenVINO out, whose start is slow."""
    monkeypatch.setattr(engine_choice, "_OPEN", {"onnxruntime": OnnxEngine})


@pytest.fixture(autouse=True)
def log_is_captured(monkeypatch, caplog):
    """Undo the settings that commands of other tests leave behind."""
    monkeypatch.setattr(logging.getLogger("dfine"), "propagate", True)
    caplog.set_level("INFO", logger="dfine")


@pytest.fixture
def packages():
    for package in NEEDED:
        pytest.importorskip(
            package,
            reason=f"{package} is not installed (tools/requirements.txt)",
        )


@pytest.fixture
def own() -> Detector:
    return Detector(TRAINED, device="cpu")


@pytest.fixture
def onnx_is_fastest(monkeypatch):
    def trial(detector, engines):
        return engine_choice.Choice(
            "onnxruntime" if "onnxruntime" in engines else "torch",
            dict.fromkeys(engines, 1.0),
        )

    monkeypatch.setattr(engine_choice, "_trial", trial)


@pytest.fixture
def given_graph(monkeypatch, exported):
    """Copy an exported file instead of exporting one, and count it."""
    calls = []

    def export(detector, path):
        calls.append(path)
        path.write_bytes(exported.read_bytes())
        path.with_suffix(".json").write_text("{}")

    monkeypatch.setattr(engine_choice, "export_onnx", export)
    return calls


def test_the_engine_of_a_trial_is_used_again_without_another_trial(
    packages, own, onnx_is_fastest, given_graph, tmp_path
):
    for _ in range(2):
        engine = fastest_engine(own, tmp_path)
        assert isinstance(engine, OnnxEngine)
    assert len(given_graph) == 1
    names = [file.suffixes for file in (tmp_path / "engines").iterdir()]
    assert sorted(names) == [[".choice", ".json"], [".onnx"]]


@pytest.mark.parametrize(
    "damage",
    ["", "{", '{"engine": "other", "milliseconds": {}}', "[" * 100_000],
)
def test_a_damaged_note_is_ignored(
    damage, packages, own, onnx_is_fastest, given_graph, tmp_path
):
    fastest_engine(own, tmp_path)
    (note,) = (tmp_path / "engines").glob("*.choice.json")
    note.write_text(damage)
    fastest_engine(own, tmp_path)
    assert len(given_graph) == 2
    assert json.loads(note.read_text())["engine"] == "onnxruntime"


def test_a_damaged_graph_is_exported_again(
    packages, own, onnx_is_fastest, given_graph, tmp_path
):
    fastest_engine(own, tmp_path)
    (graph,) = (tmp_path / "engines").glob("*.onnx")
    graph.write_bytes(b"damaged")
    assert isinstance(fastest_engine(own, tmp_path), OnnxEngine)
    assert len(given_graph) == 2


def test_an_engine_that_disagrees_is_not_used_and_reported_once(
    packages, own, onnx_is_fastest, given_graph, tmp_path, monkeypatch, caplog
):
    class Wrong(OnnxEngine):
        def __call__(self, images, sizes):
            labels, boxes, scores = super().__call__(images, sizes)
            return labels, boxes + 50, scores

    monkeypatch.setattr(engine_choice, "_OPEN", {"onnxruntime": Wrong})
    assert fastest_engine(own, tmp_path) is own.engine
    said = [line for line in caplog.messages if "does not use" in line]
    assert len(said) == 1
    assert "onnxruntime" in said[0] and "gives other predictions" in said[0]
    assert not list((tmp_path / "engines").glob("*.onnx"))


def test_an_engine_that_fails_is_not_used_and_reported(
    packages, own, onnx_is_fastest, given_graph, tmp_path, monkeypatch, caplog
):
    def fail(*_):
        raise RuntimeError("the kernel is not implemented\nstack")

    monkeypatch.setattr(OnnxEngine, "_compute", fail)
    assert fastest_engine(own, tmp_path) is own.engine
    assert (
        "does not use onnxruntime: the kernel is not implemented" in caplog.text
    )
    assert "stack" not in caplog.text


def test_a_full_disk_costs_the_cache_and_not_the_engine(
    packages, own, onnx_is_fastest, given_graph, tmp_path, monkeypatch, caplog
):
    def fail(path, _):
        raise ResourceError(f"disk full writing {path}")

    monkeypatch.setattr(engine_choice, "write_json", fail)
    assert isinstance(fastest_engine(own, tmp_path), OnnxEngine)
    assert "the next engine=auto measures again: disk full" in caplog.text


def test_a_disk_without_room_for_the_export_leaves_torch(
    own, tmp_path, monkeypatch, caplog
):
    def fail(detector, path):
        raise ResourceError("disk full writing model.onnx")

    monkeypatch.setattr(engine_choice, "export_onnx", fail)
    assert fastest_engine(own, tmp_path) is own.engine
    assert "engine=auto uses torch: disk full" in caplog.text


def test_other_weights_have_another_key(own):
    before = engine_choice._key(own, own.engine)
    assert before == engine_choice._key(own, own.engine)
    next(own.engine.model.parameters()).data.flatten()[0].add_(1)
    assert engine_choice._key(own, own.engine) != before


def test_another_processor_has_another_key(own, monkeypatch):
    before = engine_choice._key(own, own.engine)
    monkeypatch.setattr(engine_choice, "processor_name", lambda: "another")
    assert engine_choice._key(own, own.engine) != before


def test_a_model_that_cannot_be_exported_stays_in_torch(
    own, tmp_path, monkeypatch, caplog
):
    def refuse(detector, path):
        raise ConfigError("the export needs onnx")

    monkeypatch.setattr(engine_choice, "export_onnx", refuse)
    assert fastest_engine(own, tmp_path) is own.engine
    assert "engine=auto uses torch: the export needs onnx" in caplog.text


def test_the_trial_measures_every_engine(own):
    engines = {"torch": own.engine, "onnxruntime": lambda *_: None}
    choice = engine_choice._trial(own, engines)
    assert choice.engine == "onnxruntime"
    assert choice.milliseconds["torch"] > choice.milliseconds["onnxruntime"]


def test_the_oldest_files_are_removed_and_the_new_ones_kept(tmp_path):
    for number in range(20):
        (tmp_path / f"{number}.onnx").touch()
    keep = (tmp_path / "0.onnx", tmp_path / "1.onnx")
    engine_choice._remove_oldest(tmp_path, keep)
    left = list(tmp_path.iterdir())
    assert len(left) == engine_choice.MAX_CACHED
    assert set(keep) <= set(left)


def test_files_that_another_process_removes_meanwhile_do_no_harm(
    tmp_path, monkeypatch
):
    for number in range(20):
        (tmp_path / f"{number}.onnx").touch()
    listed = list(tmp_path.iterdir())
    for path in listed[:10]:
        path.unlink()
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    engine_choice._remove_oldest(tmp_path, (listed[10], listed[11]))
    assert [path.exists() for path in listed[10:]] == [True] * 10


def test_a_detector_takes_the_engine(monkeypatch):
    given = []
    monkeypatch.setattr(
        engine_choice,
        "fastest_engine",
        lambda detector: given.append(detector) or "the fastest",
    )
    detector = Detector(TRAINED, device="cpu", engine="auto")
    other = Detector.from_checkpoint(TRAINED, device="cpu", engine="auto")
    assert detector.engine == other.engine == "the fastest"
    assert given == [detector, other]


def test_other_names_of_engines_are_refused():
    with pytest.raises(ConfigError, match="'fast', expected torch or auto"):
        Detector(TRAINED, device="cpu", engine="fast")


def test_an_exported_model_has_its_own_engine(exported):
    with pytest.raises(ConfigError, match="engine is only used with check"):
        Detector(exported, engine="auto")
