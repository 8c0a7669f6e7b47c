"""Names of image files, and suggestions for names that do not exist."""

import pytest
from PIL import Image

from src.data.dataset.image_names import (
    FileIndex,
    find_image_files,
    is_image_file,
    unsafe_file_name,
)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.JPG", "a.jfif", "a.avif", "a.tga", "a.heic", "a.jpe"]
)
def test_a_known_suffix_is_enough(tmp_path, name):
    (tmp_path / name).touch()
    assert is_image_file(tmp_path / name)


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"]
)
def test_an_unknown_suffix_is_looked_behind(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.picture", kind)
    assert is_image_file(tmp_path / "a.picture")


@pytest.mark.parametrize(
    "content", [b"", b"BM", b"text", b"\x89PNX", b"<html>", b"P", b"PK\x03\x04"]
)
def test_other_files_are_no_images(tmp_path, content):
    (tmp_path / "a.picture").write_bytes(content)
    assert not is_image_file(tmp_path / "a.picture")


def test_a_folder_gives_its_images_and_counts_what_is_left_out(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in (
        "b.JPG",
        "a.png",
        "notes.txt",
        "more.txt",
        "deep/c.webp",
        "labels.json",
        "README",
        ".hidden.jpg",
    ):
        (tmp_path / name).touch()
    found = find_image_files(tmp_path)
    assert found.images == ["a.png", "b.JPG", "deep/c.webp"]
    assert found.others == {".txt": 2, ".json": 1, "": 1}
    assert found.describe_others().startswith("; not images: 2 .txt, ")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in (
        "a.jpg",
        "café.png",
        "deep/b.jpg",
        "same.jpg",
        "deep/same.jpg",
        "Two.jpg",
        "two.JPG",
    ):
        (tmp_path / name).touch()
    return FileIndex(tmp_path)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("A.JPG", "a.jpg"),
        (".\\a.jpg", "a.jpg"),
        ("deep\\b.jpg", "deep/b.jpg"),
        ("b.jpg", "deep/b.jpg"),
        ("images/a.jpg", "a.jpg"),
        ("/home/me/images/deep/b.jpg", "deep/b.jpg"),
        ("C:\\images\\a.jpg", "a.jpg"),
        ("https://host/x/a.jpg?size=1", "a.jpg"),
        ("cafe\u0301.png", "café.png"),
        ("caf%C3%A9.png", "café.png"),
    ],
)
def test_a_name_that_plainly_means_one_file_is_understood(files, name, meant):
    assert files.meant_by(name) == meant


@pytest.mark.parametrize(
    "name",
    ["c.jpg", "a.png", "elsewhere/same.bmp", "TWO.jpg", "", "/", "x/../.."],
)
def test_no_file_name_is_suggested_if_none_or_several_are_similar(files, name):
    assert files.meant_by(name) is None


@pytest.mark.parametrize(
    ("name", "similar"),
    [("a.png", "a.jpg"), ("cafe.png", "café.png"), ("xyz.jpg", None)],
)
def test_a_similar_name_is_a_suggestion_alone(files, name, similar):
    assert files.similar_to(name) == similar


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "sub/folder/a.jpg",
        "a..b.jpg",
        "..a.jpg",
        "ü ü.jpg",
        "a:b.jpg",
        "~/a.jpg",
    ],
)
def test_name_inside_the_folder_is_safe(name):
    assert unsafe_file_name(name) is None


@pytest.mark.parametrize(
    ("reason", "names"),
    [
        (
            "which leaves the image folder",
            ["../a.jpg", "a/../../b.jpg", "a\\..\\b.jpg", ".."],
        ),
        (
            "which is an absolute path; names are relative to the image folder",
            ["/etc/passwd", "C:\\a.jpg", "c:/a.jpg", "\\\\host\\share"],
        ),
        (
            "which is an address; images must lie in the image folder",
            ["http://a/b.jpg", "file:///a.jpg"],
        ),
        ("which contains a control character", ["a\0b", "a\nb", "\x1b[2J"]),
        ("which is longer than a path can be", ["x" * 5000]),
        ("expected a file name", ["", None, 5]),
    ],
)
def test_name_that_leaves_the_folder_or_is_empty_is_unsafe(reason, names):
    assert {unsafe_file_name(name) for name in names} == {reason}
