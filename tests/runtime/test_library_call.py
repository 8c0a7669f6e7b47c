"""A call from another program leaves its random states alone, and raises errors of this package."""

import random

import numpy as np
import pytest
import torch

from src.core.errors import DataError, ResourceError
from src.runtime.library_call import as_library


def test_random_states_of_the_caller_are_restored_after_an_error():
    def state():
        return (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        )

    before = state()
    with pytest.raises(DataError), as_library():
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        raise DataError("no images")
    assert state() == before


def test_too_little_memory_becomes_an_error_of_this_package():
    with pytest.raises(ResourceError, match="out of memory"), as_library():
        raise MemoryError


def test_an_error_of_the_caller_is_raised_unchanged():
    own = MemoryError("mine")
    with (
        pytest.raises(MemoryError, match="mine"),
        as_library(lambda error: error is own),
    ):
        raise own
