"""Ignoring warnings in several threads leaves the filters of the program as they were."""

import os
import warnings

import pytest
from PIL import Image

from src.inference.reading import read_ahead
from src.runtime.warning_filters import without_warnings


@pytest.fixture
def filters():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield list(warnings.filters)


def test_warnings_are_ignored_within_the_body_alone(filters):
    with without_warnings():
        warnings.warn("ignored", stacklevel=1)
        with without_warnings():
            pass
        warnings.warn("ignored", stacklevel=1)
    assert warnings.filters == filters
    with pytest.raises(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)


def test_an_error_in_the_body_restores_the_filters(filters):
    with pytest.raises(ValueError), without_warnings():
        raise ValueError
    assert warnings.filters == filters


def test_threads_that_overlap_leave_the_filters_as_they_were(filters):
    """The second thread ends last; without counting, it would restore those of the first one."""
    first = without_warnings()
    second = without_warnings()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    warnings.warn("ignored", stacklevel=1)
    second.__exit__(None, None, None)
    assert warnings.filters == filters


@pytest.mark.parametrize("program_ends_first", [True, False])
@pytest.mark.parametrize("program_begins_first", [True, False])
def test_filters_that_the_program_changes_meanwhile_are_restored_by_it(
    filters, program_begins_first, program_ends_first
):
    own = without_warnings()
    program = warnings.catch_warnings()
    if program_begins_first:
        program.__enter__()
        own.__enter__()
    else:
        own.__enter__()
        program.__enter__()
    if program_ends_first:
        program.__exit__(None, None, None)
        own.__exit__(None, None, None)
    else:
        own.__exit__(None, None, None)
        program.__exit__(None, None, None)
    assert warnings.filters == filters


def test_a_forked_process_has_the_filters_of_the_program(filters):
    with without_warnings():
        child = os.fork()
        if not child:
            os._exit(0 if warnings.filters == filters else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_reading_many_images_leaves_the_filters_as_they_were(filters, tmp_path):
    """Files that only Pillow decodes, in several threads."""
    for number in range(60):
        Image.new("RGB", (100, 80)).save(tmp_path / f"{number}.png")
    files = sorted(tmp_path.iterdir())
    assert len(list(read_ahead(files, ahead=16))) == 60
    assert warnings.filters == filters
