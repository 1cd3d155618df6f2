"""What the rehearsals share: a device that does nothing."""

import pytest

from tests.gpu_rehearsal import device


@pytest.fixture(scope="session")
def stub(tmp_path_factory, triton_cache):
    """A `device.Stub`, for runs in processes of their own."""
    reason = device.missing()
    if reason:
        pytest.skip(reason)
    return device.Stub(tmp_path_factory.mktemp("stub"), triton_cache)
