"""Fixtures that several folders of tests share."""

import logging
from pathlib import Path

import pytest
import torch

import src.runtime.optional  # noqa: F401  before ONNX Runtime: its telemetry's thread and forks do not go together
from tests.fixtures.tiny import SyntheticData, write_tiny_data
from tests.fixtures.trained_tiny import TRAINED

# Autograd starts its threads at the first backward pass. After an export it would count devices,
# which makes forks fail.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Escape text that is not valid UTF-8, such as file names in output: pytest-xdist sends UTF-8."""
    report = (yield).get_result()
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode())
        for name, text in report.sections
    ]


LOGGER = logging.getLogger("dfine")
LOGGER_AT_START = (LOGGER.handlers[:], LOGGER.propagate, LOGGER.level)


def restore_logger() -> None:
    """Undo what commands do to the logger."""
    LOGGER.handlers[:], LOGGER.propagate, level = LOGGER_AT_START
    LOGGER.setLevel(level)
    LOGGER.disabled = False


@pytest.fixture(autouse=True)
def logging_of_commands_ends_with_the_test():
    """Restore the logger, which commands set up, so that the next test does not write to a closed stream.

    Commands also run in fixtures of whole modules, which are set up before this one.
    """
    restore_logger()
    yield
    restore_logger()


@pytest.fixture(autouse=True)
def fixed_seed_and_threads():
    torch.manual_seed(0)
    torch.set_num_threads(
        1
    )  # models here are small: on busy cores threads wait for each other longer than they work


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> SyntheticData:
    """24 training and 8 validation scenes of 64 pixels."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"))


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """The trained checkpoint as an ONNX file for batches of any size; its metadata lies beside it."""
    pytest.importorskip(
        "onnxscript",
        reason="onnx and onnxscript are not installed (tools/requirements.txt)",
    )
    from src.inference import Detector
    from src.inference.export import export_onnx

    return export_onnx(
        Detector.from_checkpoint(TRAINED, device="cpu"),
        tmp_path_factory.mktemp("exported") / "tiny.onnx",
    )


@pytest.fixture(scope="session")
def exported_fixed(tmp_path_factory) -> Path:
    """The same for batches of 2, by the older exporter."""
    pytest.importorskip(
        "onnx", reason="onnx is not installed (tools/requirements.txt)"
    )
    from src.inference import Detector
    from src.inference.export import export_onnx

    return export_onnx(
        Detector.from_checkpoint(TRAINED, device="cpu"),
        tmp_path_factory.mktemp("exported") / "two.onnx",
        batch_size=2,
        exporter="torchscript",
    )
