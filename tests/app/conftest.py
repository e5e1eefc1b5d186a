"""What the tests of the app share."""

import pytest

from heterofl_flwr.grids.apps import Identity


@pytest.fixture
def identity():
    """Let this process be the server of a run, as Flower asks of those that make messages."""
    lent = Identity(3)
    yield
    lent.release()
