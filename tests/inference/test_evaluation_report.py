"""The report is one page that needs nothing else, and a browser shows it."""

import base64
import html.parser
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from src.core import ConfigError
from src.inference.detector_evaluation import (
    evaluate_detector,
    open_labelled_images,
)
from src.inference.evaluation_report import write_report

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)


class Collector(html.parser.HTMLParser):
    """Gathers sources, ids and text."""

    def __init__(self) -> None:
        super().__init__()
        self.sources, self.ids, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.sources += [
            values[key] for key in ("src", "href") if key in values
        ]
        self.ids += [values["id"]] if "id" in values else []

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def evaluation(detector, tiny_data):
    return evaluate_detector(
        detector,
        open_labelled_images(
            detector, tiny_data.folder / "images", tiny_data.folder / "val.json"
        ),
    )


@pytest.fixture(scope="module")
def page(evaluation, detector, tmp_path_factory):
    return write_report(
        evaluation,
        detector,
        tmp_path_factory.mktemp("report") / "report.html",
        worst=3,
    )


@pytest.fixture(scope="module")
def content(page) -> Collector:
    collector = Collector()
    collector.feed(page.read_text(encoding="utf-8"))
    return collector


def test_every_part_is_there(content):
    assert content.ids == [
        "numbers",
        "threshold",
        "classes",
        "sizes",
        "confusion",
        "worst",
        "origin",
    ]
    assert all(
        name in content.text
        for name in (
            "disc",
            "square",
            "triangle",
            "ring",
            "(missed)",
            "(nothing there)",
        )
    )


def test_nothing_is_fetched_from_elsewhere(content, page):
    assert content.sources and all(
        source.startswith("data:image/jpeg;base64,")
        for source in content.sources
    )
    assert not re.search(
        r"https?://|@import|<script", page.read_text(encoding="utf-8")
    )


def test_the_numbers_shown_are_those_of_the_evaluation(content, evaluation):
    assert (
        f"{evaluation.metrics['AP']:.3f}" in content.text
        and f"{evaluation.metrics['F1_threshold']:.3f}" in content.text
    )


def test_each_class_has_a_curve_of_precision_over_recall(page, evaluation):
    text = page.read_text(encoding="utf-8")
    curves = re.findall(r'points="([^"]+)"><title>([^<]+)</title>', text)
    names = [name for points, name in curves if len(points.split()) > 1]
    assert names == ["precision", "recall", "f1", *evaluation.names.values()]


def test_the_worst_images_show_truth_and_prediction(content):
    assert len(content.sources) == 6
    image = Image.open(
        io.BytesIO(base64.b64decode(content.sources[0].partition(",")[2]))
    )
    assert image.size == (320, 320)


def test_line_styles_are_explained_and_counted(content):
    text = " ".join(content.text.split())
    assert "correct, false (black label), object that was missed" in text
    assert re.search(r"\d+ correct, \d+ false, \d+ missed", text)


def test_class_names_cannot_become_markup(evaluation, detector, tmp_path):
    import dataclasses

    names = {**evaluation.names, 0: "<script>alert(1)</script>"}
    text = write_report(
        dataclasses.replace(evaluation, names=names),
        detector,
        tmp_path / "report.html",
    ).read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text


def test_a_threshold_may_be_chosen(evaluation, detector, tmp_path):
    assert "<b>0.123</b>" in write_report(
        evaluation, detector, tmp_path / "report.html", threshold=0.123, worst=0
    ).read_text(encoding="utf-8")


def test_a_detector_that_finds_nothing_gets_a_report(
    evaluation, detector, tmp_path
):
    text = write_report(
        evaluation, detector, tmp_path / "report.html", threshold=1.0, worst=0
    ).read_text(encoding="utf-8")
    assert "No detection reaches this threshold." in text


def test_without_a_choice_the_threshold_is_that_of_predictions(
    evaluation, detector, tmp_path
):
    text = write_report(
        evaluation, detector, tmp_path / "report.html", worst=0
    ).read_text(encoding="utf-8")
    best = evaluation.metrics["F1_threshold"]
    assert f"<b>{detector.threshold:.3f}</b>" in text
    assert f"at a threshold of {best:.3f}" in text


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_without_network_shows_it(page, tmp_path):
    subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/profile",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--window-size=1200,2400",
            f"--screenshot={tmp_path}/page.png",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
    )
    shown = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert shown.shape == (2400, 1200, 3)
    coloured = (shown.max(2).astype(int) - shown.min(2)) > 60
    assert (
        coloured[:1200].any() and coloured[1200:].mean() > 0.005
    )  # curves above, pictures below


@pytest.mark.parametrize("threshold", [2.0, float("nan")])
def test_an_invalid_threshold_is_refused(
    evaluation, detector, tmp_path, threshold
):
    with pytest.raises(ConfigError, match="expected 0 to 1"):
        write_report(
            evaluation, detector, tmp_path / "report.html", threshold=threshold
        )
