"""Changes single operators and numbers of the code, and counts how many of these mistakes the tests detect.

    pip install -r tests/harness/requirements.txt
    python tests/harness/mutation.py                            # 60 mutants, about 10 minutes on one core
    python tests/harness/mutation.py --list                     # only print them
    python tests/harness/mutation.py --only det_engine --count 8 --packages solver

A mutant is a copy of the project with one change: another operator, a number plus or minus one, a negated
condition, an empty loop, a removed decorator, an exception that is not caught. cosmic-ray makes the changes;
drawing them, and choosing tests for each, is done here, because its own runner has one test command for all
mutants. Strings, annotations, log messages and `__all__` are left alone.

Mutants are drawn by seed, module, function and position within the function, so a change of one function does
not alter those of the others. Tests of a mutant run in this order until one fails: the file that mirrors the
module, files that import it, files of the modules that import it, files of its package, then `contract`,
`golden`, `faults` and `end_to_end`. A test that runs longer than `--test-seconds` counts as failed. A test
that also fails without the change is ignored. After `--seconds` no further test is started, and the mutant
has survived.

Exit code 1 if mutants survived. `EQUIVALENT` lists those whose behaviour is that of the code.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("solver", "runtime", "inference", "zoo")
FURTHER_TESTS = ("contract", "golden", "faults", "end_to_end")
PRELOADED = (
    "torch",
    "torchvision",
    "timm",
    "hypothesis",
    "faster_coco_eval",
    "scipy.optimize",
    "torch.utils.tensorboard",
)
"""Packages that are imported once instead of for each mutant."""

SWAPS = (
    "Binary Add Sub, Sub Add, Mul Div, Div Mul, FloorDiv Mul, Mod Mul, BitOr BitAnd, BitAnd BitOr, "
    "LShift RShift, RShift LShift",
    "Comparison Eq NotEq, NotEq Eq, Lt LtE, Lt GtE, LtE Lt, LtE Gt, Gt GtE, Gt LtE, GtE Gt, GtE Lt, "
    "Is IsNot, IsNot Is",
    "Unary USub UAdd, Delete Not, Delete Invert",
)
"""Replacements of operators. cosmic-ray has all pairs, most of which fail at once."""

OTHER_OPERATORS = (
    "AddNot",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
    "ExceptionReplacer",
    "NumberReplacer",
    "RemoveDecorator",
    "ZeroIterationForLoop",
)

EQUIVALENT = {
    ("src/zoo/dfine/losses.py", "- @staticmethod"): (
        "torch takes forward and backward from the class, where a function is already static"
    ),
}
"""Reasons why mutants behave like the code, by module and added lines, or removed ones if none are added."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument(
        "--count", type=int, default=60, help="number of mutants"
    )
    parser.add_argument(
        "--packages",
        nargs="+",
        default=PACKAGES,
        metavar="NAME",
        help=f"packages in src, with equal shares; default: {', '.join(PACKAGES)}",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only modules with this in the path",
    )
    parser.add_argument("--list", action="store_true", help="run no tests")
    parser.add_argument(
        "--seconds",
        type=int,
        default=120,
        help="time in which tests of a mutant start",
    )
    parser.add_argument(
        "--test-seconds", type=int, default=90, help="time limit of a test"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, help=argparse.SUPPRESS
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    try:
        import cosmic_ray  # noqa: F401
    except ImportError:
        sys.exit(
            "install cosmic-ray: pip install -r tests/harness/requirements.txt"
        )
    sys.dont_write_bytecode = True
    os.environ.update(PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    root = arguments.root.resolve()
    choice = arguments.packages, arguments.count, arguments.seed, arguments.only
    if arguments.list:
        for mutant in draw(root, *choice):
            print(mutant, *mutant.diff(root), sep="\n")
        return
    if root == ROOT:
        for name in PRELOADED:
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            root, Path(folder), arguments.seconds, arguments.test_seconds
        )
        mutants = draw(runner.copy, *choice)
        results = []
        for number, mutant in enumerate(mutants, 1):
            results.append(runner.run(mutant))
            print(
                f"{number}/{len(mutants)} {mutant}: {results[-1]}", flush=True
            )
            if not results[-1].caught:
                print(*mutant.diff(runner.copy), sep="\n", flush=True)
        survived = report(runner.copy, mutants, results)
    sys.exit(1 if survived else 0)


def report(root: Path, mutants: list[Mutant], results: list[Result]) -> int:
    """Print a table by package, and each survivor; return the number of survivors."""
    print("\n| package | mutants | caught | equivalent | survived | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows: dict[str, list[float]] = {}
    survivors = []
    for mutant, result in zip(mutants, results):
        reason = mutant.reason_for_equivalence(root)
        kind = 1 if result.caught else 2 if reason else 3
        for name in (Path(mutant.module).parts[1], "all"):
            row = rows.setdefault(name, [0] * 5)
            row[0] += 1
            row[kind] += 1
            row[4] += result.seconds
        if not result.caught:
            survivors.append((mutant, reason))
    rows["all"] = rows.pop("all")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{value:.0f}' for value in row)} |")
    for mutant, reason in survivors:
        print(f"\n{mutant}: {reason and f'equivalent, {reason}' or 'survived'}")
        print(*mutant.diff(root), sep="\n")
    return int(rows["all"][3])


# ---- mutants ----


class Mutant(NamedTuple):
    """One change of one module."""

    module: str
    """Path below the root."""
    function: str
    """Qualified name; empty at the level of the module."""
    position: int
    """Number of the changed place among those of the function."""
    operator: str
    """Name of cosmic-ray's operator."""
    occurrence: int
    """Number of the change among those that the operator can make in the module."""

    def __str__(self) -> str:
        return f"{self.module} {self.function or '(module)'} {self.position} {self.operator}"

    def code(self, root: Path) -> str | None:
        """Return the changed module; None if it does not compile or means the same."""
        from cosmic_ray.mutating import mutate_code

        source = (root / self.module).read_text()
        operator = _operators()[self.operator]()
        try:
            code = mutate_code(source, operator, self.occurrence) or source
            compile(code, self.module, "exec")
        except (
            AttributeError,
            SyntaxError,
        ):  # cosmic-ray fails at `except a.B`
            return None
        same = ast.dump(ast.parse(code)) == ast.dump(ast.parse(source))
        return None if same else code

    def diff(self, root: Path) -> list[str]:
        """Return the lines that differ, with - and +."""
        before = (root / self.module).read_text().splitlines()
        after = (self.code(root) or "").splitlines()
        lines = difflib.unified_diff(before, after, n=0, lineterm="")
        return [
            line for line in lines if not line.startswith(("---", "+++", "@@"))
        ]

    def reason_for_equivalence(self, root: Path) -> str:
        """Return the reason from `EQUIVALENT`, or an empty string."""
        lines = [f"{line[0]} {line[1:].strip()}" for line in self.diff(root)]
        lines = [line for line in lines if len(line) > 2]
        added = [line for line in lines if line[0] == "+"]
        return EQUIVALENT.get((self.module, " ".join(added or lines)), "")


def draw(
    root: Path, packages: Sequence[str], count: int, seed: int, only: str = ""
) -> list[Mutant]:
    """Draw mutants: an equal share from each package, at different places."""
    chosen = []
    for number, package in enumerate(packages):
        places: dict[tuple[str, str, int], list[Mutant]] = {}
        for path in sorted((root / "src" / package).rglob("*.py")):
            module = path.relative_to(root).as_posix()
            if only in module:
                for mutant in find_mutants(path.read_text(), module):
                    places.setdefault(mutant[:3], []).append(mutant)
        share = count // len(packages) + (number < count % len(packages))
        ranked = sorted(places, key=lambda place: _draw_number(seed, place))
        for place in ranked:
            if not share:
                break
            variants = sorted(
                places[place], key=lambda mutant: _draw_number(seed, mutant[:4])
            )
            usable = next((one for one in variants if one.code(root)), None)
            if usable:
                chosen.append(usable)
                share -= 1
    return chosen


def _draw_number(seed: int, key: tuple[Any, ...]) -> bytes:
    return hashlib.sha256(repr((seed, *key)).encode()).digest()


@cache
def _operators() -> dict[str, Any]:
    from cosmic_ray.operators.provider import OperatorProvider

    names = list(OTHER_OPERATORS)
    for line in SWAPS:
        kind, pairs = line.split(" ", 1)
        for pair in pairs.split(", "):
            names.append(f"Replace{kind}Operator_{pair.replace(' ', '_')}")
    provider = OperatorProvider()
    return {name: provider[name] for name in names}


def find_mutants(source: str, module: str) -> Iterator[Mutant]:
    """Find the changes of a module that could be mistakes."""
    from cosmic_ray.ast import ast_nodes, get_ast

    counts = dict.fromkeys(_operators(), 0)
    instances = {name: operator() for name, operator in _operators().items()}
    positions: dict[str, int] = {}
    for node in ast_nodes(get_ast(source)):
        found = []
        for name, operator in instances.items():
            for _ in operator.mutation_positions(node):
                found.append((name, counts[name]))
                counts[name] += 1
        if found and not _is_left_alone(node):
            function = _function_of(node)
            positions[function] = positions.get(function, -1) + 1
            for name, occurrence in found:
                yield Mutant(
                    module, function, positions[function], name, occurrence
                )


def _function_of(node: Any) -> str:
    names = []
    while node.parent is not None:
        node = node.parent
        if node.type in ("funcdef", "classdef"):
            names.append(node.name.value)
    return ".".join(reversed(names))


def _is_left_alone(node: Any) -> bool:
    """Return whether a node is part of a string, an annotation, a log message or `__all__`."""
    while node.parent is not None:
        child, node = node, node.parent
        index = node.children.index(child)
        before = node.children[index - 1].get_code().strip() if index else ""
        first = node.children[0].get_code().strip()
        if (
            node.type == "fstring"
            or (node.type in ("tfpdef", "annassign", "param") and before == ":")
            or (node.type == "funcdef" and before == "->")
            or (node.type == "parameters" and child.type == "operator")
            or (node.type == "expr_stmt" and first == "__all__")
            or (node.type == "atom_expr" and first in ("logger", "warnings"))
            or (
                node.type == "if_stmt"
                and node.children[1].get_code().strip() == "TYPE_CHECKING"
            )
        ):
            return True
    return False


# ---- tests ----


@cache
def imported_modules(path: Path, root: Path) -> frozenset[str]:
    """Return the modules of `src` that a file imports, through packages that re-export names too."""
    found = set()
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for entry in node.names:
                found.update(_module_of(entry.name.split("."), "", root))
        if isinstance(node, ast.ImportFrom):
            start = (
                package[: len(package) - node.level + 1] if node.level else ()
            )
            names = [*start, *(node.module or "").split(".")]
            for entry in node.names:
                found.update(
                    _module_of(
                        [name for name in names if name], entry.name, root
                    )
                )
    return frozenset(found)


def _module_of(names: list[str], name: str, root: Path) -> Iterator[str]:
    """Yield the path of the module that `from names import name` reads."""
    if names[:1] != ["src"]:
        return
    place = root.joinpath(*names)
    if place.with_suffix(".py").is_file():
        yield place.with_suffix(".py").relative_to(root).as_posix()
    elif name and (place / f"{name}.py").is_file():
        yield (place / f"{name}.py").relative_to(root).as_posix()
    elif (init := place / "__init__.py").is_file():
        yield init.relative_to(root).as_posix()
        for node in ast.parse(init.read_text()).body:
            if isinstance(node, ast.ImportFrom) and name in [
                e.name for e in node.names
            ]:
                up = names[: len(names) - node.level + 1] if node.level else []
                inner = [*up, *(node.module or "").split(".")]
                inner = [part for part in inner if part]
                if inner != names:  # else it is a package within this one
                    yield from _module_of(inner, name, root)


def tests_for(module: str, root: Path) -> list[str]:
    """Return the test files for a module, those that detect mistakes soonest first."""
    inside = Path(module).relative_to("src")
    tests = root / "tests"
    mirror = mirror_of(module)
    importers = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "src").rglob("*.py"))
        if module in imported_modules(path, root) and path.name != "__init__.py"
    ]
    direct = [
        path
        for path in sorted(
            tests.rglob("test_*.py"), key=lambda path: path.stat().st_size
        )
        if module in imported_modules(path, root)
    ]
    groups = [
        [root / mirror],
        [
            path
            for path in direct
            if path.relative_to(tests).parts[0] == inside.parts[0]
        ],
        [
            path
            for path in direct
            if path.relative_to(tests).parts[0] not in FURTHER_TESTS
        ],
        [root / mirror_of(importer) for importer in importers],
        sorted((tests / inside.parts[0]).rglob("test_*.py")),
        direct,
        *(sorted((tests / name).rglob("test_*.py")) for name in FURTHER_TESTS),
    ]
    files = [
        path.relative_to(root).as_posix()
        for group in groups
        for path in group
        if path.is_file()
    ]
    return list(
        dict.fromkeys(
            file for file in files if not file.endswith("test_harness.py")
        )
    )


def mirror_of(module: str) -> str:
    path = Path(module).relative_to("src")
    return (Path("tests") / path.parent / f"test_{path.name}").as_posix()


# ---- running ----


@dataclass(frozen=True)
class Result:
    """Result of the tests for one mutant."""

    caught: bool
    seconds: float
    note: str
    """The test that failed, or why no other was run."""

    def __str__(self) -> str:
        return f"{'caught' if self.caught else 'SURVIVED'} after {self.seconds:.0f} s, {self.note}"


@dataclass
class Runner:
    """Runs the tests of mutants in a copy of the project."""

    root: Path
    folder: Path
    seconds: int
    test_seconds: int
    reliable: dict[str, bool] = field(default_factory=dict)
    """Whether a test that failed for a mutant passes without one."""

    def __post_init__(self) -> None:
        self.copy = self.folder / "copy"
        ignored = shutil.ignore_patterns(
            ".*", "__pycache__", "output", "data.tmp"
        )
        shutil.copytree(self.root, self.copy, ignore=ignored, symlinks=True)
        subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "src"], cwd=self.copy
        )

    def run(self, mutant: Mutant) -> Result:
        """Run the tests of a mutant until one fails."""
        began = time.monotonic()
        path = self.copy / mutant.module
        source = path.read_text()
        changed = mutant.code(self.copy) or source
        for cached in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            cached.unlink()
        files = tests_for(mutant.module, self.copy)
        skipped = [test for test, good in self.reliable.items() if not good]
        while True:
            path.write_text(changed)
            left = self.seconds - (time.monotonic() - began)
            code, test = self._pytest(files, left, skipped)
            path.write_text(source)
            seconds = time.monotonic() - began
            if test is None:
                note = "no test failed" if code == 0 else "the time is over"
                return Result(False, seconds, note)
            if test not in self.reliable:
                self.reliable[test] = (
                    self._pytest([test], self.test_seconds, [])[1] is None
                )
            if self.reliable[test]:
                took_long = " took too long" if code == -signal.SIGALRM else ""
                return Result(True, seconds, test + took_long)
            skipped.append(test)

    def _pytest(
        self, files: list[str], seconds: float, skipped: list[str]
    ) -> tuple[int, str | None]:
        """Return pytest's exit code in a child process, and the test that failed, if any."""
        note = self.folder / "note"
        note.write_text("")
        if not (child := os.fork()):
            self._be_pytest(files, seconds, skipped, note)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                child, signal.SIGKILL
            )  # processes that a test left behind
        kind, _, test = note.read_text().partition(" ")
        return code, test if kind == "failed" or code not in (
            0,
            OUT_OF_TIME,
        ) else None

    def _be_pytest(
        self, files: list[str], seconds: float, skipped: list[str], note: Path
    ) -> None:
        code = 1
        try:
            os.setsid()
            os.chdir(self.copy)
            with open(self.folder / "log", "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            import pytest

            arguments = [
                "-q",
                "-x",
                "-p",
                "no:cacheprovider",
                "-c",
                "pyproject.toml",
            ]
            arguments += [
                f"--basetemp={self.folder / 'temporary'}",
                "--rootdir=.",
            ]
            arguments += [
                f"--deselect={test}" for test in skipped if "::" in test
            ]
            arguments += [
                f"--ignore={test}" for test in skipped if "::" not in test
            ]
            arguments += [file for file in files if file not in skipped]
            watch = _Watch(note, time.monotonic() + seconds, self.test_seconds)
            code = int(pytest.main(arguments, plugins=[watch]))
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)


OUT_OF_TIME = 99
"""Exit code of pytest if tests were left when the time was over."""


class _Watch:
    """A plugin that limits the time of each test, and of all, and notes which test runs or failed."""

    def __init__(self, note: Path, end: float, test_seconds: int) -> None:
        self.note, self.end, self.test_seconds = note, end, test_seconds
        self._begin("(import)")

    def _begin(self, test: str) -> None:
        self.note.write_text(f"running {test}")
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(self.test_seconds)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        import pytest

        if time.monotonic() > self.end:
            pytest.exit("the time is over", OUT_OF_TIME)
        self._begin(nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text(f"failed {report.nodeid}")

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.note.write_text(f"failed {report.nodeid}")


if __name__ == "__main__":
    main()
