"""What the tests of the app share."""

import pytest

from heterofl_flwr import report
from heterofl_flwr.report.page import write_report


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
