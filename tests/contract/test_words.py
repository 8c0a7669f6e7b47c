"""The prose of the product uses common English: expressions that readers stumbled over do not come back."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CHECKED = [
    "src",
    "tests",
    "tools",
    "configs",
    "docs",
    "docs_site",
    "examples",
    "notebooks",
    "reference",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "Makefile",
    "mkdocs.yml",
    "requirements.txt",
    "train.py",
]
"""Files and folders that are checked, except this file, which quotes the expressions."""

SUFFIXES = (
    ".py",
    ".md",
    ".yml",
    ".yaml",
    ".txt",
    ".jinja",
    ".html",
    "Makefile",
    "Dockerfile",
    ".ipynb",
    ".css",
)

TO_BE = r"(?:is|are|was|were|be|been)"

PATTERNS = {
    r"\bchances?\b": "random state, generator or seed",
    rf"\b{TO_BE} told\b": "logged, reported, warned about",
    r"\b(?:told|tells?|telling) of\b": "reports, logs",
    r"\b(?:says?|said|tells?) so\b": "logs a warning, returns True",
    r"\bmend(?:s|ed|ing)?\b": "fix, repair",
    r"\banew\b": "again, from scratch",
    r"\bgo(?:es)? on with\b": "continue, resume",
    r"\bNone for (?:none|not|nothing|nowhere|never|where)\b": "None disables it",
    r"\bfor (?:never|nowhere)\b": "None disables it",
    r"\bshall\b": "must, will",
    r"\bdrawn (?:data|shapes|images?|on the spot)\b": "synthetic, generated",
    r"\bspoilt\b": "corrupted, malformed",
    r"\btwins?\b": "duplicates",
    r"\bthere twice\b": "duplicate",
    rf"\b{TO_BE} taken for\b": "is treated as",
    r"\bwhat (?:learns|trains)\b": "trainable parameters",
    r"\bhost waits\b": "host-device synchronization",
    r"\bforth and back\b": "forward and backward",
    r"\bhollow\b": "without data",
    r"\b(?:from which on|up to which)\b": "from this epoch on",
    r"\bat hand\b": "available",
    r"\b(?:hold(?:s|ing)?|held) against\b": "compare with",
    r"\bin silence\b": "silently, without a message",
    r"\bwithout a word\b": "without a warning",
    r"\bnever so often\b": "that many times",
    r"\bwhere (?:all|it all) (?:follows|comes) from\b": "source, seed",
    r"\bat last\b(?!\.pth| (?:one|epoch|step|batch))": "finally",
    # negation with "not": "is not a file", except in fixed phrases such as "is no longer"
    r"(?<!there )\b(?:is|are|was|were) no "
    r"(?!longer\b|more\b|less\b|way\b|need\b|such\b|default\b|one\b)[a-z]": "is not a",
}
"""Expressions that are not used, each with what to write instead."""

BAD_START = re.compile(r"(?:What|Which|Where|How|Whether|Tells?)\b")
"""First words of docstrings that are questions and not sentences."""


def texts_of(path: Path) -> list[tuple[int, str]]:
    """Return the lines of prose of a file with their numbers: of Python files, comments and strings alone."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(source.splitlines(), start=1))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_text = token.type in (tokenize.COMMENT, tokenize.STRING)
        if is_text or tokenize.tok_name[token.type] == "FSTRING_MIDDLE":
            found += list(
                enumerate(token.string.splitlines(), start=token.start[0])
            )
    return found


def docstring_starts(path: Path) -> list[tuple[int, str]]:
    """Return the first line of each docstring of a Python file, with its number."""
    if path.suffix != ".py":
        return []
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(
            node,
            (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef),
        ):
            text = ast.get_docstring(node)
            if text:
                found.append((node.body[0].lineno, text.splitlines()[0]))
    return found


def findings_in(path: Path) -> list[str]:
    """Return "line 3: 'shall'; write must, will" for each expression outside backticks."""
    found = []
    for number, line in texts_of(path):
        plain = re.sub(r"`[^`]*`|\{[^{}]*\}", "", line)
        for pattern, replacement in PATTERNS.items():
            match = re.search(pattern, plain, re.IGNORECASE)
            if match:
                found.append(
                    f"line {number}: {match[0]!r}; write {replacement}"
                )
    for number, line in docstring_starts(path):
        if BAD_START.match(line):
            found.append(
                f"line {number}: the docstring begins with {line.split()[0]!r}; write a sentence"
            )
    return found


def checked_files() -> list[Path]:
    files = []
    for name in CHECKED:
        path = ROOT / name
        candidates = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in candidates:
            is_prose = file.name.endswith(SUFFIXES) and not file.stem.endswith(
                "_cn"
            )
            if is_prose and file != Path(__file__).resolve():
                files.append(file)
    return files


def test_every_checked_name_has_files():
    for name in CHECKED:
        assert (ROOT / name).exists(), name
    assert len(checked_files()) > 100


def test_no_file_uses_an_expression_that_readers_stumble_over():
    faults = []
    for file in checked_files():
        faults += [
            f"{file.relative_to(ROOT)}: {finding}"
            for finding in findings_in(file)
        ]
    assert not faults, "\n".join(faults)


def test_no_file_has_marks_of_an_unresolved_merge():
    marked = []
    for file in checked_files():
        if re.search(
            r"^(?:<{7}|>{7}) ", file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            marked.append(str(file.relative_to(ROOT)))
    assert not marked


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.md", "The host waits for the device.", 1),
        ("a.md", "`for never` in backticks is a name.", 0),
        ("a.md", "There is no file, and it is no longer needed.", 0),
        ("a.py", '"""Which one it is."""\n', 1),
        ("a.py", "# it shall be mended\n", 2),
        ("a.py", 'print(f"{x} is no file")\n', 1),
        ("a.py", "shall = 1\n", 0),
    ],
)
def test_a_planted_expression_is_found(tmp_path, name, text, count):
    path = tmp_path / name
    path.write_text(text)
    assert len(findings_in(path)) == count
