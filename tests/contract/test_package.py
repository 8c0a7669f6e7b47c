"""The package that `pip install .` installs: src under the name dfine_dinov3, with configurations."""

import importlib.util
import re
import subprocess
import sys

import pytest

if importlib.util.find_spec("tomllib"):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

from src import __version__
from src.cli import serve
from src.solver.loggers.choice import SERVICES
from tests.fixtures.golden import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
NAME = "dfine_dinov3"


def requirements(file: str) -> list[str]:
    """Return the lines of a requirements file without comments."""
    lines = []
    for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].strip()
        if words:
            lines.append(words)
    return lines


def test_the_list_of_packages_is_complete():
    folders = sorted((ROOT / "src").rglob("__init__.py"))
    packages = [f"{NAME}.configs"]
    for file in folders:
        parts = file.parent.relative_to(ROOT / "src").parts
        packages.append(".".join([NAME, *parts]))
    assert sorted(SETUPTOOLS["packages"]) == sorted(packages)


def test_every_other_file_is_installed_too():
    patterns = SETUPTOOLS["package-data"]
    for path in sorted((ROOT / "src").rglob("*")):
        if path.is_dir() or path.suffix in (".py", ".pyc"):
            continue
        assert any(path.match(pattern) for pattern in patterns["*"]), path
    for path in sorted((ROOT / "configs").rglob("*")):
        assert path.is_dir() or path.suffix == ".yml", path


def test_dependencies_are_those_of_requirements():
    project = PROJECT["project"]
    listed = project["dependencies"] + project["optional-dependencies"]["test"]
    assert sorted(listed) == sorted(requirements("requirements.txt"))


def test_the_extra_for_tools_is_that_of_its_requirements():
    extra = PROJECT["project"]["optional-dependencies"]["tools"]
    assert sorted(extra) == sorted(requirements("tools/requirements.txt"))


def test_the_extra_for_the_server_is_part_of_the_one_for_tools():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras["serve"]) < set(extras["tools"])
    names = {re.split(r"[^\w-]", item)[0] for item in extras["serve"]}
    assert names == {name.replace("_", "-") for name in serve.PACKAGES}


def test_the_extras_for_loggers_are_those_of_their_requirements():
    extras = PROJECT["project"]["optional-dependencies"]
    listed = requirements("tools/requirements-loggers.txt")
    assert extras["loggers"] == listed
    assert extras["wandb"] + extras["mlflow"] + extras["clearml"] == listed


def test_every_service_has_an_extra_that_the_documents_name():
    watch = (ROOT / "docs/watch.md").read_text(encoding="utf-8")
    for word in [*SERVICES, "loggers"]:
        assert word in PROJECT["project"]["optional-dependencies"]
        assert f"`{word}`" in watch
    assert 'pip install "dfine-dinov3[mlflow]"' in watch
    assert "pip install -r tools/requirements-loggers.txt" in watch


@pytest.mark.parametrize(
    ("extra", "file"),
    [
        ("docs", "docs_site/requirements.txt"),
        ("notebook", "notebooks/requirements.txt"),
    ],
)
def test_an_extra_is_that_of_its_requirements(extra, file):
    listed = PROJECT["project"]["optional-dependencies"][extra]
    assert sorted(listed) == sorted(requirements(file))


def test_nobody_gets_the_packages_of_tests_without_asking():
    names = {
        re.split(r"\W", item)[0] for item in PROJECT["project"]["dependencies"]
    }
    assert not names & {"pytest", "hypothesis"}


def test_the_version_has_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": f"{NAME}.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)


def test_no_import_of_src_names_it():
    """The same files are installed under another name."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        found = re.search(
            r"^\s*(from|import) src\b",
            re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL),
            re.MULTILINE,
        )
        assert found is None, path


def imported(code: str) -> set[str]:
    """Return the modules that a Python process has imported after running code."""
    code += "\nimport sys; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_importing_the_package_imports_neither_torch_nor_its_own_parts():
    modules = imported("import src")
    assert "torch" not in modules
    assert not {name for name in modules if name.startswith("src.")}


def test_importing_a_detector_leaves_out_what_it_may_never_need():
    modules = imported("from src import Detector")
    assert "torch" in modules
    slow = {"torchvision", "scipy", "timm", "pycocotools", "matplotlib"}
    slow |= {"faster_coco_eval", "tensorboard", "sympy", "torch._dynamo"}
    assert not modules & slow
    assert not modules & {"src.solver", "src.zoo", "src.optim"}


def test_help_imports_no_torch():
    for name in ("train", "predict", "demo"):
        code = (
            "from src.cli.main import main\n"
            f"try: main(['{name}', '--help'])\n"
            "except SystemExit: pass"
        )
        modules = imported(code)
        assert not modules & {"torch", "numpy", "yaml"}
