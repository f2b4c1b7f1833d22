import pytest
from issuing import Publisher


@pytest.fixture
def publisher():
    """A server of keys on loopback."""
    server = Publisher()
    yield server
    server.close()
