"""Files are looked for by listing their folders; links are followed to see where they lead."""

import pytest

from src.data.dataset.misplaced_files import find_misplaced


@pytest.fixture
def folder(tmp_path):
    """An image folder with `a.jpg` and `sub/b.jpg`, and `outside.jpg` beside it."""
    (tmp_path / "images/sub").mkdir(parents=True)
    for name in ("images/a.jpg", "images/sub/b.jpg", "outside.jpg"):
        (tmp_path / name).touch()
    return tmp_path / "images"


def test_files_that_are_there_are_sound(folder):
    assert find_misplaced(folder, ["a.jpg", "sub/b.jpg", "./a.jpg"]) == ([], {})


def test_missing_files_and_folders_are_found_by_position(folder):
    assert find_misplaced(folder, ["a.jpg", "c.jpg", "none/a.jpg"]) == (
        [1, 2],
        {},
    )


def test_link_within_the_folder_is_sound(folder):
    (folder / "link.jpg").symlink_to(folder / "sub/b.jpg")
    (folder / "dir").symlink_to(folder / "sub")
    assert find_misplaced(folder, ["link.jpg", "dir/b.jpg"]) == ([], {})


def test_link_out_of_the_folder_is_found_with_where_it_leads(folder):
    (folder / "link.jpg").symlink_to("../outside.jpg")
    (folder / "up").symlink_to("..")
    outside = str(folder.parent / "outside.jpg")
    assert find_misplaced(folder, ["a.jpg", "link.jpg", "up/outside.jpg"]) == (
        [],
        {1: outside, 2: outside},
    )


def test_folder_whose_name_begins_alike_lies_outside(folder):
    other = folder.parent / "images2"
    other.mkdir()
    (other / "c.jpg").touch()
    (folder / "link.jpg").symlink_to(other / "c.jpg")
    assert find_misplaced(folder, ["link.jpg"]).leaving == {
        0: str(other / "c.jpg")
    }


def test_link_to_nothing_is_missing(folder):
    (folder / "link.jpg").symlink_to("absent.jpg")
    assert find_misplaced(folder, ["link.jpg"]) == ([0], {})


def test_image_folder_may_be_a_link_itself(folder):
    (folder.parent / "link").symlink_to(folder)
    assert find_misplaced(folder.parent / "link", ["a.jpg", "sub/b.jpg"]) == (
        [],
        {},
    )
