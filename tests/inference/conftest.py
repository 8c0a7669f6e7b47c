"""A trained checkpoint and images for it."""

from pathlib import Path

import pytest

from src.inference import Detector
from tests.fixtures.tiny import SyntheticData
from tests.fixtures.trained_tiny import TRAINED


@pytest.fixture(scope="session")
def detector() -> Detector:
    return Detector.from_checkpoint(TRAINED, device="cpu")


@pytest.fixture(scope="session")
def val_images(tiny_data: SyntheticData) -> list[Path]:
    return sorted((tiny_data.folder / "images").glob("val_*.jpg"))
