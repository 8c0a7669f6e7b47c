"""Files are read and written in few modules, which handle encodings, partial writes and foreign files."""

import ast
from collections.abc import Iterator

import pytest

from tests.fixtures.tiny import ROOT

READ_BY_THEMSELVES = {
    "src/runtime/distributed.py": "/proc",
    "src/runtime/memory.py": "/proc and /sys",
    "src/inference/evaluation_report.py": "the template of this project",
    "src/solver/loggers/logged_state.py": "a state of its own, in a process without torch",
}
"""Modules that read text of their own or of the system, which needs no care."""

WRITTEN_BY_THEMSELVES = {
    "src/core/yaml_config.py": "YAMLConfig.save, for callers of Python",
    "src/data/dataset/synthetic.py": "pictures, checked beforehand",
    "src/inference/prediction_files.py": "predictions, under a temporary name",
    "src/runtime/files.py": "all others",
    "src/runtime/memory.py": "/proc/self/clear_refs, which is not a file of a user",
    "src/runtime/own_files.py": "a mark, appended to a temporary file",
    "src/runtime/watchdog.py": "stacks, checked beforehand",
    "src/solver/loggers/logged_state.py": "its state, under a temporary name, in a process without torch",
    "src/solver/loggers/service_process.py": "pictures, in a temporary folder",
}
"""Modules that open files for writing."""

MODULES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "src").rglob("*.py")
)


def calls(module: str) -> Iterator[tuple[str, ast.Call]]:
    """Yield the name and the node of each call of a module."""
    for node in ast.walk(ast.parse((ROOT / module).read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def opened(module: str) -> set[str]:
    """Return the modes in which a module opens files."""
    modes = set()
    for name, call in calls(module):
        if name == "open" or (
            name.endswith(".open")
            and name.split(".")[0] not in ("Image", "os", "self")
        ):
            values = [
                *call.args[1:2],
                *(word.value for word in call.keywords if word.arg == "mode"),
            ]
            modes.update(
                value.value
                for value in values
                if isinstance(value, ast.Constant)
            )
            if not values:
                modes.add("r")
    return modes


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"src/core/paths.py"}))
def test_user_text_is_read_only_by_code_that_handles_byte_order_marks_and_encodings(
    module,
):
    if module not in READ_BY_THEMSELVES:
        assert not [
            name for name, _ in calls(module) if name.endswith(".read_text")
        ]
    assert not opened(module) & {"r", "rt"}


@pytest.mark.parametrize("module", MODULES)
def test_files_are_written_where_half_written_files_and_files_of_others_are_known(
    module,
):
    writes = {mode for mode in opened(module) if set(mode) & set("wax+")}
    writes |= {
        name
        for name, _ in calls(module)
        if name.rpartition(".")[2] in ("write_text", "write_bytes")
    }
    writes |= (
        {name for name, _ in calls(module) if name == "torch.save"}
        if "weight_files" not in module
        else set()
    )
    assert not writes or module in WRITTEN_BY_THEMSELVES


@pytest.mark.parametrize("module", MODULES)
def test_yaml_of_users_is_read_by_one_loader_that_keeps_names_as_they_are(
    module,
):
    loads = {
        name
        for name, _ in calls(module)
        if name.startswith("yaml.") and "load" in name
    }
    allowed = {
        "src/core/config_file.py": {"yaml.load"},
        "src/data/preparation/yolo_yaml.py": {"yaml.load"},
        "src/data/preparation/convert.py": {"yaml.safe_load"},
    }
    assert loads <= allowed.get(module, set())


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"src/core/paths.py"}))
def test_files_of_users_are_opened_where_a_fifo_is_refused(module):
    """See `open_regular`; src/runtime/files.py opens its own files by `os.open`, without waiting."""
    assert "rb" not in opened(module) or module == "src/runtime/files.py"
    own = {
        "src/inference/exported_engines.py": "after `checked_path`",
        "src/ops/onednn.py": "/proc",
        "src/runtime/stop.py": "/proc",
        "src/serving/app.py": "files of the package",
        "src/solver/checkpoint.py": "after `read_tensor_file`",
    }
    reads = [name for name, _ in calls(module) if name.endswith(".read_bytes")]
    assert not reads or module in own
    for name, call in calls(module):
        # picture.py is copied by programs without this project, and gets files from nobody else
        is_copied = module == "src/data/dataset/picture.py"
        if name in ("Image.open", "np.load") and not is_copied:
            assert ast.unparse(call.args[0]) in ("file", "io.BytesIO(raw)")
