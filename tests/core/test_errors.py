"""Every kind of expected error has an exit code of its own."""

import pytest

from src.core import errors


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("ConfigError", 2),
        ("DataError", 3),
        ("CheckpointError", 4),
        ("NumericsError", 5),
        ("ResourceError", 6),
        ("RankError", 7),
        ("ExportError", 8),
        ("Preempted", 75),
    ],
)
def test_error_has_the_exit_code_of_its_kind(name, code):
    assert getattr(errors, name).exit_code == code


def test_no_two_kinds_share_an_exit_code():
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RunError)
    ]
    assert len({kind.exit_code for kind in kinds}) == len(kinds) == 9


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one line"), "one line"),
        (ValueError("\nfirst\nsecond"), "first"),
        (KeyError(), "KeyError"),
        (OSError(2, "No such file"), "[Errno 2] No such file"),
    ],
)
def test_first_line_of_an_error_is_its_text_or_the_name_of_its_class(
    error, line
):
    assert errors.first_line(error) == line


def test_first_line_of_an_error_without_text_can_be_named():
    assert (
        errors.first_line(RuntimeError(), without_text="out of memory")
        == "out of memory"
    )
    assert (
        errors.first_line(RuntimeError("cuda"), without_text="out of memory")
        == "cuda"
    )
