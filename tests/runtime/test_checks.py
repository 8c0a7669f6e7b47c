"""Results of checks, and the exit code that they lead to."""

import pytest

from src.core.errors import DataError
from src.runtime.checks import (
    Check,
    ChecksFailed,
    Finding,
    Skipped,
    exit_code_of,
    over_all_ranks,
    raise_if_failed,
    run_check,
)
from src.runtime.distributed import rank
from tests.fixtures.processes import on_ranks


def raising(error):
    def check():
        raise error

    return check


def test_a_finding_becomes_a_check_with_its_name():
    check = run_check("disk", lambda: Finding("fast", {"mb": 3}))
    assert check == Check("fast", {"mb": 3}, "ok", 0, "disk")
    assert check.as_json() == {
        "name": "disk",
        "status": "ok",
        "text": "fast",
        "numbers": {"mb": 3},
    }


def test_a_check_that_cannot_run_says_why():
    check = run_check("GPUs", raising(Skipped("no GPU")))
    assert (check.status, check.text, check.code) == ("skipped", "no GPU", 0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("no folder"), 3),
        (MemoryError(), 6),
        (RuntimeError("CUDA error: no kernel image is available"), 6),
        (KeyError("x"), 1),
    ],
)
def test_an_error_becomes_a_failed_check_with_the_exit_code_of_a_command(
    error, code
):
    check = run_check("a", raising(error))
    assert (check.status, check.code) == ("failed", code)
    assert check.as_json()["code"] == code


def test_ctrl_c_is_not_a_failed_check():
    with pytest.raises(KeyboardInterrupt):
        run_check("a", raising(KeyboardInterrupt()))


def test_the_highest_code_of_the_failed_checks_counts_and_warnings_do_not():
    fine = Check("", status="ok", name="a")
    doubtful = Check("", status="warning", name="b")
    data = Check("", status="failed", code=3, name="c")
    memory = Check("", status="failed", code=6, name="d")
    assert exit_code_of([fine, doubtful]) == 0
    raise_if_failed([fine, doubtful])
    with pytest.raises(
        ChecksFailed, match="2 of 4 checks failed: d, c"
    ) as caught:
        raise_if_failed([fine, memory, doubtful, data])
    assert caught.value.exit_code == 6


def test_one_rank_is_enough_to_fail_and_is_named():
    def check_on_rank():
        status = "failed" if rank() == 1 else "ok"
        own = Check(f"on {rank()}", {}, status, 6 * rank(), "shared memory")
        found = over_all_ranks(own)
        return found.status, found.code, found.text, len(found.by_rank)

    first, second = on_ranks(2, check_on_rank)
    assert first == ("failed", 6, "rank 1: on 1", 2)
    assert second == ("failed", 6, "on 1", 2)
