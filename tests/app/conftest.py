"""What the tests of the app share."""

import pytest

from heterofl_flwr import report
from heterofl_flwr.grids.apps import Identity
from heterofl_flwr.report.page import write_report


@pytest.fixture
def identity():
    """Let this process be the server of a run, as Flower asks of those that make messages."""
    lent = Identity(3)
    yield
    lent.release()


@pytest.fixture(scope="module", autouse=True)
def _no_page():
    """Leave out the page and its figures, which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write_report", lambda folder: folder.report)
        yield


@pytest.fixture
def page(monkeypatch):
    """Let the runs of a test write their page."""
    monkeypatch.setattr(report, "write_report", write_report)
