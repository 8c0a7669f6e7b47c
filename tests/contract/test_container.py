"""The Dockerfile and the workflow fit the repository; hadolint checks the Dockerfile in `make lint`."""

import fnmatch
import re
import shlex

import pytest
import yaml

from tests.contract.test_package import PROJECT
from tests.fixtures.tiny import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / "examples/github-actions").glob("*.yml"))


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile with their arguments."""
    plain = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", plain)
    found = []
    for line in joined.splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            found.append((name, rest))
    return found


def values_of(name: str) -> list[str]:
    return [rest for found, rest in instructions(DOCKERFILE) if found == name]


def is_sent(path: str, ignored: list[str]) -> bool:
    """Return whether `.dockerignore` sends a file to the builder; the last pattern that matches decides."""
    sent = True
    folders = [
        path.rsplit("/", depth)[0] for depth in range(path.count("/") + 1)
    ]
    for pattern in ignored:
        plain = pattern.removeprefix("!")
        names = folders + [part.rpartition("/")[2] for part in folders]
        plain = plain.removeprefix("**/")
        if any(fnmatch.fnmatch(name, plain) for name in names):
            sent = pattern.startswith("!")
    return sent


def test_the_container_does_not_run_as_root():
    last = [name for name, _ in instructions(DOCKERFILE)]
    (user,) = values_of("USER")
    assert user == "${USER_ID}"
    assert "USER_ID=1000" in values_of("ARG")
    assert last.index("USER") > last.index("FROM", last.index("FROM") + 1)


def test_the_entry_point_is_a_command_of_the_package():
    (entry,) = values_of("ENTRYPOINT")
    (command,) = yaml.safe_load(entry)
    assert command in PROJECT["project"]["scripts"]


def test_the_container_has_the_torch_and_the_extras_of_the_package():
    (torch,) = (line for line in values_of("RUN") if "torch>=" in line)
    listed = PROJECT["project"]["dependencies"]
    assert set(shlex.split(torch)[2:4]) <= set(listed)
    (extras,) = (v for v in values_of("ARG") if v.startswith("EXTRAS="))
    name = extras.partition("=")[2]
    assert name in PROJECT["project"]["optional-dependencies"]


def test_everything_that_the_dockerfile_copies_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = [line for line in ignored if line and not line.startswith("#")]
    copied = []
    for line in values_of("COPY"):
        if not line.startswith("--from"):
            copied += line.split()[:-1]
    assert {"pyproject.toml", "src", "configs"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert is_sent(name, ignored), name
    for name in (
        "data/a.jpg",
        ".git/config",
        "runs/train/best.pth",
        "weights/a",
    ):
        assert not is_sent(name, ignored), name
    assert not is_sent("src/core/__pycache__/a.pyc", ignored)
    assert is_sent("src/core/errors.py", ignored)


def test_packages_that_setuptools_reads_are_copied():
    copied = " ".join(values_of("COPY"))
    needed = {*PROJECT["tool"]["setuptools"]["package-dir"].values()}
    needed |= {PROJECT["project"]["readme"]}
    needed |= {*PROJECT["project"]["license-files"]}
    for name in needed:
        assert re.search(rf"\b{re.escape(name)}\b", copied), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_the_form_of_github_actions(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as True
    assert set(workflow) <= {"name", True, "permissions", "concurrency", "jobs"}
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), step
            action = step.get("uses", "actions/a@v1")
            assert re.fullmatch(r"actions/[\w-]+@v\d+", action)
            known = {"name", "uses", "run", "with", "if", "env"}
            assert set(step) <= known
