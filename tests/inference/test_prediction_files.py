"""The file of predictions is valid, however the job ends."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from src.core import ConfigError
from src.inference import PredictionSettings, prediction_files
from src.inference.predict_source import predict_source
from tests.fixtures.progress import wait_until
from tests.fixtures.tiny import ROOT
from tests.fixtures.trained_tiny import TRAINED
from tests.inference.test_predict_images import entries


def test_results_until_ctrl_c_are_written(
    detector, val_images, tmp_path, monkeypatch
):
    stream = detector.stream

    def interrupted(*arguments, **keywords):
        for number, seen in enumerate(stream(*arguments, **keywords)):
            if number == 2:
                raise KeyboardInterrupt
            yield seen

    monkeypatch.setattr(detector, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predict_source(
            detector,
            str(val_images[0].parent),
            tmp_path,
            settings=PredictionSettings(threshold=0.0),
        )
    assert {e["image_id"] for e in entries(tmp_path)} == {1, 2}


def test_results_are_written_while_the_job_runs(
    detector, val_images, tmp_path, monkeypatch
):
    stream, sizes = detector.stream, []

    def watched(*arguments, **keywords):
        for seen in stream(*arguments, **keywords):
            yield seen
            (file,) = tmp_path.glob(".predictions.json.*")
            sizes.append(file.stat().st_size)

    monkeypatch.setattr(detector, "stream", watched)
    monkeypatch.setattr(
        "src.inference.prediction_files.json_bytes",
        lambda entry: json.dumps(entry).encode().ljust(9000),
    )
    predict_source(
        detector,
        str(val_images[0].parent),
        tmp_path,
        settings=PredictionSettings(threshold=0.0),
        draw=False,
        frames=3,
    )
    assert sizes[0] > 9000 * 10 and sizes == sorted(set(sizes))


def test_an_error_in_the_middle_keeps_what_was_found_before(
    detector, val_images, tmp_path, monkeypatch, caplog
):
    stream = detector.stream

    def failing(*arguments, **keywords):
        for number, seen in enumerate(stream(*arguments, **keywords)):
            if number == 1:
                raise RuntimeError("the device is gone")
            yield seen

    monkeypatch.setattr(detector, "stream", failing)
    with (
        caplog.at_level("INFO", "dfine"),
        pytest.raises(RuntimeError, match="the device is gone"),
    ):
        predict_source(
            detector,
            str(val_images[0].parent),
            tmp_path,
            settings=PredictionSettings(threshold=0.0),
        )
    assert {entry["image_id"] for entry in entries(tmp_path)} == {1}
    assert (
        "the job ended early; the predictions so far were written"
        in caplog.text
    )


@pytest.mark.parametrize(
    "settings", [{"threshold": 5}, {"nms": -1}, {"batch_size": 0}]
)
def test_a_wrong_setting_leaves_earlier_results_as_they_are(
    detector, val_images, tmp_path, settings
):
    predict_source(
        detector,
        str(val_images[0]),
        tmp_path,
        settings=PredictionSettings(threshold=0.0),
    )
    before = (tmp_path / "predictions.json").read_bytes()
    with pytest.raises(ConfigError, match="expected"):
        predict_source(
            detector,
            str(val_images[0]),
            tmp_path,
            PredictionSettings(**settings),
        )
    assert (tmp_path / "predictions.json").read_bytes() == before and len(
        before
    ) > 100


@pytest.mark.parametrize("fatal", [3, 4])  # first and second of the image
def test_a_stop_within_an_image_keeps_the_images_before_it(
    tmp_path, monkeypatch, fatal
):
    written = prediction_files.json_bytes
    calls = []

    def stopped(entry):
        calls.append(entry)
        if len(calls) == fatal:
            raise KeyboardInterrupt
        return written(entry)

    monkeypatch.setattr(prediction_files, "json_bytes", stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        prediction_files.PredictionFile(tmp_path) as file,
    ):
        for image in (1, 2):
            file.add([{"image_id": image}, {"image_id": image}])
    assert entries(tmp_path) == [{"image_id": 1}, {"image_id": 1}]


def test_a_stop_within_the_first_image_keeps_earlier_results(tmp_path):
    earlier = tmp_path / "predictions.json"
    earlier.write_text("[]")

    def stopped():
        yield {"image_id": 1}
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        prediction_files.PredictionFile(tmp_path) as file,
    ):
        file.add(stopped())
    assert earlier.read_text() == "[]"
    assert list(tmp_path.iterdir()) == [earlier]


def test_sigterm_keeps_what_was_found(val_images, tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    for number in range(4000):
        (source / f"{number:04}.jpg").hardlink_to(val_images[0])
    command = [
        sys.executable,
        "tools/inference/torch_inf.py",
        "-r",
        TRAINED,
        "-i",
        source,
        "--output",
        tmp_path / "found",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--threshold=0", "--no-draw", "-d=cpu"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    wait_until(
        lambda: any(
            p.stat().st_size > 9000
            for p in tmp_path.glob("found/.predictions*")
        ),
        process.pid,
        lambda: "",
    )
    process.terminate()
    assert (
        process.wait() == 143
        and b"error[143]: stopped by SIGTERM" in process.stderr.read()
    )
    assert entries(tmp_path / "found") and not list(tmp_path.glob("found/.*"))


def test_a_file_name_of_another_encoding_loses_no_result(
    detector, val_images, tmp_path
):
    name = b"bl\xfctter.jpg"  # Latin-1
    shutil.copy(val_images[0], os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    shutil.copy(val_images[1], tmp_path / "b.jpg")
    predict_source(
        detector,
        str(tmp_path),
        tmp_path / "found",
        settings=PredictionSettings(threshold=0.0),
    )
    names = {
        os.fsencode(entry["file_name"]) for entry in entries(tmp_path / "found")
    }
    assert names == {name, b"b.jpg"}
    assert len(list((tmp_path / "found").glob("*.jpg"))) == 2
