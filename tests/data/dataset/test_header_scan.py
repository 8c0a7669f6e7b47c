"""Headers of images are read once, kept, and shared by ranks."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.data.dataset import header_scan
from src.data.dataset.decoding import ImageChangedError
from src.data.dataset.duplicate_images import find_duplicates
from src.data.dataset.header_scan import (
    BYTES,
    CHANGED,
    HEIGHT,
    UNKNOWN,
    WIDTH,
    scan_images,
    sizes_of_files,
)
from tests.fixtures.processes import on_ranks


@pytest.fixture
def paths(tmp_path) -> list[str]:
    """Five images of 20 x 10 pixels, each of another grey, and after them an empty file and none."""
    for index in range(5):
        Image.new("L", (20, 10), index).save(tmp_path / f"{index}.png")
    (tmp_path / "empty.png").touch()
    return [
        str(tmp_path / name)
        for name in (*(f"{i}.png" for i in range(5)), "empty.png", "none.png")
    ]


SIZES = np.tile([[20, 10]], (7, 1))


def test_sizes_are_read_and_files_that_are_no_images_stay_unknown(paths):
    rows = scan_images(paths, SIZES).rows
    assert rows[:5, [WIDTH, HEIGHT]].tolist() == [[20, 10]] * 5
    assert rows[5:, WIDTH].tolist() == [UNKNOWN] * 2
    assert scan_images(paths, SIZES).contradictions(SIZES) == {}


def test_files_that_have_not_changed_are_not_opened_again(
    paths, tmp_path, monkeypatch
):
    first = scan_images(paths[:5], SIZES[:5], tmp_path / "cache.npz")
    os.utime(paths[2], (1, 1))
    opened, ordinary = [], Image.open
    monkeypatch.setattr(
        Image,
        "open",
        lambda file: (opened.append(file.name), ordinary(file))[1],
    )
    second = scan_images(paths[:5], SIZES[:5], tmp_path / "cache.npz")
    assert opened == [paths[2]]
    assert np.array_equal(
        np.delete(first.rows, CHANGED, 1), np.delete(second.rows, CHANGED, 1)
    )


def test_changes_since_an_earlier_run_are_logged(paths, tmp_path, caplog):
    scan_images(paths[:5], SIZES[:5], tmp_path / "cache.npz")
    os.utime(paths[2], (1, 1))
    scan_images(paths[:5], SIZES[:5], tmp_path / "cache.npz")
    assert caplog.messages == [
        f"images changed since a run began in this folder: 1 (first: {paths[2]})"
    ]


@pytest.mark.parametrize("raw", [b"", b"PK\3\4nonsense", "another list"])
def test_cache_that_does_not_fit_is_no_cache(paths, tmp_path, raw):
    cache = tmp_path / "cache.npz"
    scan_images(paths[:4], SIZES[:4], cache) if isinstance(
        raw, str
    ) else cache.write_bytes(raw)
    assert (
        scan_images(paths[:5], SIZES[:5], cache).rows[:, WIDTH].tolist()
        == [20] * 5
    )


def test_ranks_share_the_work_and_get_the_same_result(paths, monkeypatch):
    def scan():
        seen = []
        ordinary = header_scan._row
        monkeypatch.setattr(
            header_scan,
            "_row",
            lambda path, known: (
                seen.append(Path(path).stem),
                ordinary(path, known),
            )[1],
        )
        return scan_images(paths[:5], SIZES[:5]).rows.tolist(), seen

    (one, looked_at), (two, others) = on_ranks(2, scan)
    assert one == two == scan_images(paths[:5], SIZES[:5]).rows.tolist()
    assert (looked_at, others) == (["0", "2", "4"], ["1", "3"])


def test_copy_on_another_machine_may_be_younger_but_not_longer(
    paths, monkeypatch
):
    scan = scan_images(paths, SIZES)
    scan.rows[:, CHANGED] = UNKNOWN
    scan.check_unchanged(0, os.stat(paths[0]))
    scan.check_unchanged(6, os.stat(paths[0]))  # nothing is known of it
    os.utime(paths[0], (1, 1))
    scan.rows[1, BYTES] += 1
    for index in (0, 1):
        with pytest.raises(
            ImageChangedError,
            match=f"^image {paths[index]} has changed since the run began",
        ):
            scan.check_unchanged(index, os.stat(paths[index]))


def test_times_of_change_may_be_rounded(paths):
    scan = scan_images(paths, SIZES)
    time = os.stat(paths[0]).st_mtime_ns // 10**9
    os.utime(paths[0], (time, time))
    scan.check_unchanged(0, os.stat(paths[0]))


def test_too_many_open_files_are_not_treated_as_unreadable_images(
    paths, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        scan_images(paths, SIZES)


def test_sizes_of_files_correct_those_of_labels_where_a_file_can_be_read(paths):
    wrong = np.tile([[30, 10]], (7, 1))
    assert (
        sizes_of_files(paths, wrong).tolist() == [[20, 10]] * 5 + [[30, 10]] * 2
    )


def test_duplicates_are_confirmed_by_content_and_beyond_the_limit_counted(
    paths, tmp_path
):
    for name in ("5", "6"):
        (tmp_path / f"{name}.png").write_bytes(Path(paths[0]).read_bytes())
    first, second = (
        scan_images(files, SIZES[: len(files)])
        for files in (
            [*paths[:4], paths[1], str(tmp_path / "5.png")],
            [str(tmp_path / "6.png"), paths[3]],
        )
    )
    twins = find_duplicates([first, second])
    assert (
        twins.within(0) == [[paths[0], str(tmp_path / "5.png")]]
        and twins.within(1) == []
    )
    assert twins.shared() == [
        [paths[0], str(tmp_path / "5.png"), str(tmp_path / "6.png")]
    ]
    assert find_duplicates([first, second], limit=0).unread > 0
