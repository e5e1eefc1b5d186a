"""What all tests of bad faith share."""

import logging

import pytest

from tests.hostile.servers import Forging


@pytest.fixture(scope="module", autouse=True)
def _no_logs():
    """Log nothing here, where each rejected reply would be a warning."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@pytest.fixture(scope="module")
def grid():
    with Forging() as grid:
        yield grid
