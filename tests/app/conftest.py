"""What the tests of the app share."""

import pytest

from heterofl_flwr.report import page as pages
from heterofl_flwr.report.page import write_page


@pytest.fixture(scope="module", autouse=True)
def _no_page():
    """Leave out the page and its figures, which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "write_page", lambda folder: folder.report)
        yield


@pytest.fixture
def page(monkeypatch):
    """Let the runs of a test write their page."""
    monkeypatch.setattr(pages, "write_page", write_page)
