"""An int8 export measures what it costs, keeps sensitive parts in float, and refuses a loss."""

import json

import pytest

from src.core import ConfigError
from src.core.errors import DataError, ExportError
from src.inference import Detector, int8_export
from src.inference.detector_evaluation import open_labelled_images
from src.inference.int8_export import (
    Int8Settings,
    _Search,
    export_int8,
)
from src.inference.metadata import Metadata

PARTS = [
    "backbone.vit",
    "encoder",
    "decoder.decoder",
    "decoder.dec_bbox_head",
]


@pytest.fixture(scope="module")
def dataset(detector, tiny_data):
    folder = tiny_data.folder
    return open_labelled_images(
        detector, folder / "images", folder / "val.json"
    )


@pytest.fixture
def runtime(monkeypatch, exported):
    """Check the packages, and copy an exported file instead of exporting one."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(
            package,
            reason=f"{package} is not installed (tools/requirements.txt)",
        )

    def export(detector, path, *, batch_size):
        for suffix in (".onnx", ".json"):
            content = exported.with_suffix(suffix).read_bytes()
            path.with_suffix(suffix).write_bytes(content)
        return path

    monkeypatch.setattr(int8_export, "export_onnx", export)


def test_an_int8_file_notes_its_ap_before_and_after_and_predicts(
    runtime, detector, dataset, val_images, tmp_path
):
    path = tmp_path / "best.int8.onnx"
    settings = Int8Settings("onnxruntime", max_ap_loss=0.5)
    note = export_int8(detector, path, val_images[:4], dataset, settings)
    assert note.images == 4
    assert note.ap_float > 0.1
    assert note.ap_float - note.ap_int8 <= 0.5
    assert all("head" in part for part in note.float_parts)
    content = json.loads(path.with_suffix(".json").read_text())
    assert content["int8"]["ap_int8"] == note.ap_int8
    opened = Detector(path, device="cpu")
    assert opened.names == detector.names
    assert opened.engine.metadata == path.with_suffix(".json").read_text()


def test_an_int8_file_for_openvino_has_its_weights_and_metadata_beside_it(
    runtime, detector, dataset, val_images, tmp_path
):
    for package in ("openvino", "nncf"):
        pytest.importorskip(
            package,
            reason=f"{package} is not installed (tools/requirements.txt)",
        )
    path = tmp_path / "best.int8.xml"
    settings = Int8Settings("openvino", max_ap_loss=0.5)
    export_int8(detector, path, val_images[:2], dataset, settings)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "best.int8.bin",
        "best.int8.json",
        "best.int8.xml",
    ]
    assert len(Detector(path).predict(val_images[0], threshold=0)) > 0


def test_nothing_is_written_if_every_choice_of_parts_loses_too_much(
    runtime, detector, dataset, val_images, tmp_path, monkeypatch
):
    values = iter([0.5, 0.1, 0.1])
    monkeypatch.setattr(
        int8_export, "_average_precision", lambda *_: next(values)
    )
    monkeypatch.setattr(
        int8_export,
        "_sensitivities",
        lambda before, images, parts, quantized: dict.fromkeys(parts, 0.1),
    )
    monkeypatch.setattr(
        int8_export, "parts_of", lambda graph: ["encoder", "decoder.decoder"]
    )
    path = tmp_path / "best.int8.onnx"
    with pytest.raises(
        ExportError, match=r"lowers AP by 0\.4000 at best, 0\.01 allowed"
    ):
        export_int8(
            detector,
            path,
            val_images[:1],
            dataset,
            Int8Settings("onnxruntime"),
        )
    assert not list(tmp_path.iterdir())


def test_sensitivity_compares_each_part_alone_with_float(detector, val_images):
    asked = []

    def quantized_except(others):
        asked.append(set(others))
        return detector

    found = int8_export._sensitivities(
        detector, val_images[:2], ["a", "b"], quantized_except
    )
    assert found == pytest.approx({"a": 0.0, "b": 0.0}, abs=1e-5)
    assert asked == [{"b"}, {"a"}]


def test_heads_of_the_decoder_are_in_float_from_the_start():
    search = _Search(PARTS, 0.5, 0.01)
    assert search.float_parts == ["decoder.dec_bbox_head"]


def test_the_most_sensitive_part_becomes_float_next():
    search = _Search(PARTS, ap_float=0.5, max_ap_loss=0.01)
    assert not search.accepts(0.48)
    search.sensitivity = {
        "backbone.vit": 0.1,
        "encoder": 0.3,
        "decoder.decoder": 0.2,
    }
    search.keep_most_sensitive_in_float()
    assert search.float_parts == ["decoder.dec_bbox_head", "encoder"]
    assert search.accepts(0.495)


def test_the_search_ends_when_one_part_is_left():
    search = _Search(["encoder"], ap_float=0.5, max_ap_loss=0.01)
    search.accepts(0.4)
    search.accepts(0.45)
    with pytest.raises(ExportError, match=r"AP by 0\.0500 at best"):
        search.keep_most_sensitive_in_float()


def test_an_allowed_loss_beyond_the_range_of_ap_is_refused():
    with pytest.raises(ConfigError, match="max_ap_loss is 5, expected 0 to 1"):
        Int8Settings("onnxruntime", max_ap_loss=5)


def test_a_name_for_another_engine_is_refused(
    runtime, detector, dataset, val_images, tmp_path
):
    with pytest.raises(ConfigError, match=r"called best\.xml, expected .*onnx"):
        export_int8(
            detector,
            tmp_path / "best.xml",
            val_images,
            dataset,
            Int8Settings("onnxruntime"),
        )


def test_no_images_are_refused(runtime, detector, dataset, tmp_path):
    with pytest.raises(DataError, match="no images for the calibration"):
        export_int8(
            detector,
            tmp_path / "best.onnx",
            [],
            dataset,
            Int8Settings("onnxruntime"),
        )


def test_a_file_of_others_is_not_replaced(
    runtime, detector, dataset, val_images, tmp_path
):
    path = tmp_path / "best.onnx"
    path.write_text("a file of the user")
    with pytest.raises(ConfigError, match="did not write it"):
        export_int8(
            detector, path, val_images, dataset, Int8Settings("onnxruntime")
        )
    assert path.read_text() == "a file of the user"


def test_metadata_of_earlier_exports_has_no_note_of_int8():
    metadata = Metadata(
        preprocessing=[{"type": "Resize", "size": [64, 64]}],
        classes=[{"id": 1, "name": "cat"}],
        threshold=0.4,
        input_size=[64, 64],
        batch_size=None,
    )
    content = json.loads(metadata.to_json())
    del content["int8"]
    read = Metadata.from_json(json.dumps(content), "model.onnx")
    assert read == metadata
