"""The package has two names, `src` and `dfine_dinov3`, and both mean the same modules."""

import subprocess
import sys

from tests.fixtures.golden import ROOT


def run(code: str, *path, cwd=ROOT) -> subprocess.CompletedProcess:
    environment = {"PYTHONPATH": ":".join(map(str, path)), "PATH": "/bin"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=environment
    )


def installed(folder):
    """Return a folder in which the package has the name that it has when it is installed."""
    folder.mkdir()
    (folder / "dfine_dinov3").symlink_to(ROOT / "src")
    return folder


USER_FILE = """
from {name}.core import register
from torch import nn


@register()
class MyBackbone(nn.Module):
    out_channels = [8]
    out_strides = [8]
"""

FIND = """
from pathlib import Path
from {own}.core.user_files import import_file
from {own}.core.registry import find
import_file(Path('my_backbone.py'), 'config.yml')
print(find('MyBackbone').factory.__name__, find('Resize').factory.__module__)
"""


def test_a_file_of_a_user_may_import_either_name(tmp_path):
    site = installed(tmp_path / "site")
    for own, path in (("src", ROOT), ("dfine_dinov3", site)):
        for name in ("src", "dfine_dinov3"):
            folder = tmp_path / f"{own}_{name}"
            folder.mkdir()
            file = folder / "my_backbone.py"
            file.write_text(USER_FILE.format(name=name))
            done = run(FIND.format(own=own), path, cwd=folder)
            expected = f"MyBackbone {own}.data.transforms.geometric"
            assert done.stdout.strip() == expected, done.stderr


def test_modules_keep_their_own_name_and_place():
    code = """
from src.two_names import import_under_both_names
import_under_both_names()
import src.ops.boxes, dfine_dinov3.ops.boxes
assert dfine_dinov3 is src
assert dfine_dinov3.ops.boxes is src.ops.boxes
assert src.ops.boxes.__spec__.name == src.ops.boxes.__name__ == 'src.ops.boxes'
assert src.__spec__.name == 'src'
import_under_both_names()
import importlib
importlib.reload(src.ops.boxes)
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_a_module_that_does_not_exist_is_reported_under_its_name():
    code = (
        "from src.two_names import import_under_both_names as both\n"
        "both()\nimport dfine_dinov3.nothing"
    )
    done = run(code)
    assert "No module named 'dfine_dinov3.nothing'" in done.stderr


def test_a_package_of_a_user_that_is_called_src_is_left_alone(tmp_path):
    own = tmp_path / "project/src"
    own.mkdir(parents=True)
    (own / "__init__.py").write_text("OWNER = 'user'")
    (own / "part.py").write_text("")
    code = (
        "import dfine_dinov3.cli.common\n"
        "import src, src.part\nprint(src.OWNER)\n"
        "import src.core"
    )
    done = run(code, installed(tmp_path / "site"), cwd=tmp_path / "project")
    assert done.stdout.strip() == "user"
    assert "No module named 'src.core'" in done.stderr


def test_pickles_name_the_package_as_it_was_imported(tmp_path):
    code = (
        "import pickle\nfrom dfine_dinov3.core.durations import RunLength\n"
        "assert b'dfine_dinov3' in pickle.dumps(RunLength)\n"
        "assert b'src' not in pickle.dumps(RunLength)"
    )
    done = run(code, installed(tmp_path / "site"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
