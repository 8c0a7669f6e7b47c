"""The process on pretended GPUs that the tests of this folder share."""

import os

import pytest

from tests.pretend_gpu.host import Host
from tests.pretend_gpu.runtime import missing


@pytest.fixture(scope="session")
def gpu(tmp_path_factory):
    """Process on pretended GPUs; without it tests are skipped, or fail if REQUIRE_PRETEND_GPU is 1."""
    reason = missing()
    if reason and os.environ.get("REQUIRE_PRETEND_GPU") == "1":
        pytest.fail(f"GPUs cannot be pretended: {reason}")
    if reason:
        pytest.skip(f"GPUs cannot be pretended: {reason}")
    host = Host(tmp_path_factory.mktemp("gpu"))
    yield host
    host.close()
