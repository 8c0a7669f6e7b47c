"""Python files of users that a configuration names."""

import sys

import pytest

from src.core.errors import ConfigError, DataError
from src.core.user_files import import_file


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a way to write a file, whose traces are removed afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str, name: str = "own_part_of_a_test.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    yield write
    sys.modules.pop("own_part_of_a_test", None)


def test_a_file_is_imported_under_its_name(file):
    import_file(file("number = 3"), "a.yml:1")
    assert sys.modules["own_part_of_a_test"].number == 3


def test_a_file_may_import_modules_of_its_folder(file):
    file("number = 4", "beside_own_part.py")
    import_file(file("from beside_own_part import number"), "a.yml:1")
    assert sys.modules.pop("beside_own_part").number == 4


def test_a_file_of_another_folder_replaces_one_of_the_same_name(file, tmp_path):
    import_file(file("number = 3"), "a.yml:1")
    (tmp_path / "other").mkdir()
    import_file(file("number = 5", "other/own_part_of_a_test.py"), "a.yml:1")
    assert sys.modules["own_part_of_a_test"].number == 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("json.py", r"but another module is called json; rename the file$"),
        (
            "data.txt",
            r"__import__ names data.txt, expected a Python file such as my_data.py$",
        ),
        ("my-data.py", r"__import__ names my-data.py, expected a Python file"),
    ],
)
def test_names_that_cannot_be_imported_are_refused(file, name, expected):
    with pytest.raises(ConfigError, match=f"^a.yml:1: .*{expected}"):
        import_file(file("", name), "a.yml:1")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^a.yml:1: __import__ names .*/my_data.py, which does not exist",
    ):
        import_file(tmp_path / "my_data.py", "a.yml:1")


def test_an_error_in_the_file_is_shown(file):
    with pytest.raises(
        ConfigError,
        match=r"own_part_of_a_test.py cannot be imported: ZeroDivisionError",
    ):
        import_file(file("1 / 0"), "a.yml:1")
    assert "own_part_of_a_test" not in sys.modules


def test_an_error_of_this_project_keeps_its_kind(file):
    with pytest.raises(DataError, match="^no table$"):
        import_file(
            file("from src.core import DataError\nraise DataError('no table')"),
            "a.yml:1",
        )
