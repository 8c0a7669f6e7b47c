"""A server as a process of its own: under load, and with a browser."""

import csv
import json
import re
import shutil

import pytest

pytest.importorskip("starlette")

from PIL import Image

from src.inference import Detector
from tests.fixtures.commands import run_python
from tests.fixtures.golden import ROOT
from tests.fixtures.served import serving
from tests.fixtures.trained_tiny import TRAINED

CHROMIUM = next(
    filter(
        None,
        map(shutil.which, ("chromium", "chromium-browser", "google-chrome")),
    ),
    None,
)


@pytest.mark.slow
def test_twenty_clients_get_all_answers_while_some_send_hostile_requests():
    result = run_python(
        "-W", "ignore", "tests/harness/serve_load.py", "--requests=400"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.match(r"400 requests of 20 clients in \d+ s, ", result.stdout)
    assert "lost or wrong answers: 0\n" in result.stdout
    assert (
        "SIGTERM with 12 requests in progress: 12 answered, exit code 0 after "
        in result.stdout
    )


@pytest.fixture
def browser():
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page that fails the test if anything goes wrong in it, or if it asks another host."""
    context = browser.new_context(locale="en-GB", accept_downloads=True)
    opened = context.new_page()
    faults = []
    asked = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    assert faults == []
    hosts = {url.split("/")[2] for url in asked if url.startswith("http")}
    assert all(host.startswith("127.0.0.1:") for host in hosts), hosts


def downloaded(page, kind: str, panel: int = 0):
    """Return name and file of a download."""
    with page.expect_download() as download:
        page.locator(f"[data-download={kind}]").nth(panel).click()
    return download.value.suggested_filename, download.value.path()


def show(page, server, file) -> None:
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector("body[data-ready=yes]")
    page.set_input_files("#file", file)
    page.wait_for_selector("#drop.small")


@pytest.mark.slow
def test_the_page_shows_filters_and_saves_detections(page, tmp_path):
    image = ROOT / "docs/images/demo.jpg"
    detector = Detector(TRAINED, device="cpu")
    found = detector.predict(image)
    assert len(found)
    with serving(detector) as server:
        show(page, server, image)
        assert page.locator(".panel").count() == 1
        assert page.locator("#legend").is_hidden()
        counts = page.locator(".classes b").all_inner_texts()
        slider = page.locator("input[type=range]")
        threshold = float(slider.input_value())
        kept = [score for score in found.scores if score >= threshold]
        assert sum(map(int, counts)) == len(kept)
        name, file = downloaded(page, "csv")
        assert name == "demo.csv"
        rows = list(csv.DictReader(file.open()))
        assert len(rows) == len(kept)
        assert rows[0]["name"] == found.names[0]
        assert float(rows[0]["x_min"]) == pytest.approx(
            found.boxes[0][0], abs=1
        )
        name, file = downloaded(page, "json")
        content = json.loads(file.read_text())
        assert (name, len(content["detections"])) == ("demo.json", len(kept))
        name, file = downloaded(page, "picture")
        with Image.open(file) as picture:
            width, height = picture.size
        assert name == "demo.png"
        assert width / height == pytest.approx(
            found.size[0] / found.size[1], rel=0.01
        )
        slider.fill("1")
        assert page.locator(".classes b").count() == 0
        assert "no detections" in page.locator(".classes").inner_text()
        slider.fill("0.01")
        more = page.locator(".classes b").all_inner_texts()
        assert sum(map(int, more)) > len(kept)


@pytest.mark.slow
def test_the_page_compares_two_detectors_and_shows_refusals(page, tmp_path):
    first = Detector(TRAINED, device="cpu")
    second = Detector(TRAINED, device="cpu")
    second.threshold = 0.9
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff not an image")
    with serving(first, second) as server:
        show(page, server, ROOT / "docs/images/demo.jpg")
        assert page.locator(".panel").count() == 2
        assert page.locator("#legend").is_visible()
        outputs = page.locator("output").all_inner_texts()
        assert outputs[1] == "0.90"
        name, _ = downloaded(page, "csv", panel=1)
        assert name == "demo.2.csv"
        page.set_input_files("#file", damaged)
        page.wait_for_selector("#message.bad")
        assert "refused the image: the image is" in page.inner_text("#message")


@pytest.mark.slow
def test_the_page_compares_two_detectors_with_one_place_for_requests(page):
    detector = Detector(TRAINED, device="cpu")
    with serving(detector, detector, queue=1) as server:
        show(page, server, ROOT / "docs/images/demo.jpg")
        assert page.locator("#message").is_hidden()


@pytest.mark.slow
def test_the_page_shows_the_status_of_an_answer_that_is_not_json(page):
    answer = {"status": 413, "content_type": "text/html", "body": "<html>"}
    page.route("**/predict", lambda route: route.fulfill(**answer))
    with serving(Detector(TRAINED, device="cpu")) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector("body[data-ready=yes]")
        page.set_input_files("#file", ROOT / "docs/images/demo.jpg")
        page.wait_for_selector("#message.bad")
        assert "413 " in page.inner_text("#message")


@pytest.mark.slow
def test_the_rows_of_an_image_replace_those_of_the_last_one_under_the_mouse(
    page,
):
    with serving(Detector(TRAINED, device="cpu")) as server:
        show(page, server, ROOT / "docs/images/demo.jpg")
        page.locator("summary").click()
        page.locator("tbody tr").first.hover()
        before = page.locator("tbody").inner_text()
        page.set_input_files("#file", ROOT / "docs/images/prediction.jpg")
        page.wait_for_selector("#message", state="hidden")
        page.wait_for_function(
            "before => document.querySelector('tbody').innerText !== before",
            arg=before,
        )


@pytest.mark.slow
def test_a_chinese_browser_gets_chinese_texts(browser):
    page = browser.new_context(locale="zh-CN").new_page()
    with serving(Detector(TRAINED, device="cpu")) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector("body[data-ready=yes]")
        assert "将图片拖到此处" in page.inner_text("#drop")
        assert page.get_attribute("html", "lang") == "zh-CN"
