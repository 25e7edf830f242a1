"""Where the processes of a job run."""

import pytest

from tests.fork_server import ForkServer


@pytest.fixture(scope="module")
def servers():
    """Servers that fork the two processes of a job, one each."""
    from tests.launch.test_hosts import ENVIRONMENT

    with ForkServer(ENVIRONMENT) as first, ForkServer(ENVIRONMENT) as second:
        yield first, second
