"""The process on pretended GPUs that the tests of this folder share."""

import pytest

from tests.pretend_gpu.host import Host
from tests.pretend_gpu.runtime import skip_if_missing


@pytest.fixture(scope="session")
def gpu(tmp_path_factory):
    """Process on pretended GPUs."""
    skip_if_missing()
    host = Host(tmp_path_factory.mktemp("gpu"))
    yield host
    host.close()
