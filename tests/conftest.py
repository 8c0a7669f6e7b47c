"""Fixtures that several folders of tests share."""

import pytest
import torch

from tests.fixtures.tiny import SyntheticData, write_tiny_data


@pytest.fixture(autouse=True)
def fixed_seed_and_threads():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # models here are small: on busy cores threads wait for each other longer than they work


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> SyntheticData:
    """24 training and 8 validation scenes of 64 pixels."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"))
