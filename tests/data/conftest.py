"""A process that has loaded no data set."""

import pytest

from heterofl_flwr.data.load import _load


@pytest.fixture
def fresh():
    """Forget what was loaded, before and after."""
    _load.cache_clear()
    yield
    _load.cache_clear()
