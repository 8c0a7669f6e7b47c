"""Estimates of a run from measurements."""

import pytest

from src.solver.run_estimate import (
    describe_fit,
    describe_run,
    duration_text,
    images_that_fit,
    run_seconds,
    speed_text,
    speed_with_loader,
)


@pytest.mark.parametrize(
    ("one", "two", "capacity", "images"),
    [
        (3.0, 4.0, 20.0, 17),  # 2 GB, and 1 GB for each image, within 19 GB
        (3.0, 4.0, 2.0, 0),
        (3.0, 3.001, 20.0, None),
        (3.0, 2.9, 20.0, None),
    ],
)
def test_the_batch_that_fits_is_on_a_line_through_two_peaks(
    one, two, capacity, images
):
    assert images_that_fit(one, two, capacity) == images


def test_a_loader_limits_the_speed_or_adds_its_time_without_workers():
    assert speed_with_loader(100, None, 4) == 100
    assert speed_with_loader(100, 400, 4) == 100
    assert speed_with_loader(100, 40, 4) == 40
    assert speed_with_loader(100, 100, 0) == pytest.approx(50)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (42, "42 s"),
        (40 * 60, "40 min"),
        (2.25 * 3600, "2.2 h"),
        (11.1 * 3600, "11 h"),
        (5 * 86400, "5 days"),
    ],
)
def test_durations_have_the_unit_that_people_would_use(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("speed", "text"), [(3.127, "3.13"), (99.9, "99.9"), (1234.5, "1,234")]
)
def test_speeds_have_three_digits_or_all_before_the_point(speed, text):
    assert speed_text(speed) == text


def test_the_run_is_described_with_its_duration_and_its_limit():
    assert run_seconds(118_287, 80, 240) == pytest.approx(39_429)
    text = describe_run("COCO", 118_287, 80, 240.0, loader_bound=False)
    assert text == (
        "COCO (118,287 images), 80 epochs: about 11 h without evaluations, at 240 images/s"
    )
    limited = describe_run("COCO", 118_287, 80, 240.0, loader_bound=True)
    assert limited.startswith(text) and "limited by the loader" in limited


@pytest.mark.parametrize(
    ("fits", "text"),
    [
        (None, "the largest batch could not be estimated"),
        (
            8,
            "a batch of 2 images per GPU fits, about 8 would fit too (estimated",
        ),
        (2, "a batch of 2 images per GPU fits (estimated"),
        (1, "a batch of 2 images per GPU probably does not fit, about 1 would"),
    ],
)
def test_the_batch_is_described_with_what_would_fit(fits, text):
    assert describe_fit(2, fits, "GPU").startswith(text)
