"""Fixtures of the tests of data."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed_and_threads():
    """One thread: images of tests are too small to be shared by several."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
