"""The fault injection tools work, and find no error in a few attempts."""

import re

import pytest

from tests.fixtures.commands import run_python


@pytest.mark.slow
def test_soak_kills_a_run_and_damages_its_checkpoint_without_a_loss():
    result = run_python(
        "-W",
        "ignore",
        "tests/harness/soak.py",
        "--kills=2",
        "--bits=3",
        "--cuts=2",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("2 kills in ")
    assert "end equal to the bit: 1 of 1\n" in result.stdout
    assert (
        "flipped bits of last.pth noticed, last.previous.pth taken: 3 of 3\n"
        in result.stdout
    )
    assert (
        "cuts of last.pth noticed, last.previous.pth taken: 2 of 2\n"
        in result.stdout
    )


def test_fuzz_finds_no_fault():
    result = run_python(
        "-W",
        "ignore",
        "tests/harness/fuzz.py",
        "--labels=30",
        "--configs=12",
        "--checkpoints=12",
        "--images=15",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = re.findall(
        r"\| (\w+) \| (\d+) \| (\d+) \| (\d+) \| 0 \|", result.stdout
    )
    assert [row[0] for row in rows] == [
        "labels",
        "configs",
        "checkpoints",
        "images",
    ]
    assert all(
        int(n) == int(refused) + int(right) and int(refused) > 0
        for _, n, refused, right in rows
    )


@pytest.mark.slow
def test_soak_kills_one_long_run_and_looks_at_what_it_takes():
    result = run_python(
        "-W",
        "ignore",
        "tests/harness/soak.py",
        "--minutes=0.03",
        "--wait",
        "1",
        "1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(
        r"^\d+ kills in 0\.03 min, \d+ steps\ncheckpoints that can be read after a kill: (\d+) of \1\n",
        result.stdout,
    )
    assert "memory of the training: within an attempt" in result.stdout


@pytest.mark.slow
def test_a_series_of_faults_is_counted():
    result = run_python(
        "-W", "ignore", "tests/harness/fault_series.py", "numbers", "--repeat=2"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.match(
        r"numbers: .*: 2 of 2; .*\nnumbers: \d+ s\n$", result.stdout
    )


@pytest.mark.slow
def test_hostile_files_are_refused():
    result = run_python("-W", "ignore", "tests/harness/hostile_files.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "no code ran: 42 of 42; " in result.stdout


@pytest.mark.slow
def test_the_cost_of_safety_is_measured():
    result = run_python(
        "-W",
        "ignore",
        "tests/harness/safety_cost.py",
        "--millions=1",
        "--saves=1",
        "--images=100",
        "--steps=1",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("\n| ") == 6 and "% of its " in result.stdout


@pytest.mark.slow
def test_a_service_keeps_its_results_its_order_and_its_memory():
    result = run_python("-W", "ignore", "tests/harness/service.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2000 predictions in " in result.stdout
    assert "missing, in another place or different: 0\n" in result.stdout


@pytest.mark.parametrize("tool", ["soak", "fuzz", "fault_series", "mutation"])
def test_a_word_that_is_not_a_number_is_refused(tool):
    assert run_python(f"tests/harness/{tool}.py", "--seed=x").returncode == 2


SMALL_MODULE = '''"""A module."""


def larger(a: int, b: "int | None" = 1) -> int:
    """Return 2 + 2 of these."""
    return a if a > (b or 0) else b
'''

SMALL_TEST = """
from src.runtime.numbers import larger

def test_the_larger_one_is_returned():
    assert larger(2, 1) == 2 and larger(1, 2) == 2
"""


SMALL_SETTINGS = """
[tool.pytest.ini_options]
pythonpath = ["."]
addopts = "--import-mode=importlib"
"""


@pytest.fixture
def small_project(tmp_path):
    files = {
        "pyproject.toml": SMALL_SETTINGS,
        "src/__init__.py": "",
        "src/runtime/__init__.py": "",
        "src/runtime/numbers.py": SMALL_MODULE,
        "tests/runtime/test_numbers.py": SMALL_TEST,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def mutation(project, *arguments: str):
    pytest.importorskip("cosmic_ray", reason="tests/harness/requirements.txt")
    return run_python(
        "tests/harness/mutation.py",
        f"--root={project}",
        "--packages=runtime",
        *arguments,
    )


def test_mutants_are_changes_of_code_and_not_of_strings_and_annotations(
    small_project,
):
    listed = [mutation(small_project, "--list", "--count=9") for _ in range(2)]
    assert listed[0].stdout == listed[1].stdout
    changed = re.findall(r"^\+(.*)$", listed[0].stdout, re.MULTILINE)
    assert {line.split()[0] for line in changed} == {"return", "def"}
    assert any("a >= (b" in line or "a <= (b" in line for line in changed)
    assert all("-> int" in line or "(b" in line for line in changed)


def test_caught_and_surviving_mutants_are_told_apart(small_project):
    result = mutation(small_project, "--count=9")
    found = re.findall(
        r"^\d/\d .* \d (\w+): (caught|SURVIVED)", result.stdout, re.M
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert {verdict for _, verdict in found} == {"caught", "SURVIVED"}
    assert (
        "tests/runtime/test_numbers.py::test_the_larger_one_is_returned"
        in result.stdout
    )
    survived = sum(verdict == "SURVIVED" for _, verdict in found)
    assert (
        f"| all | {len(found)} | {len(found) - survived} | 0 | {survived} |"
        in result.stdout
    )
