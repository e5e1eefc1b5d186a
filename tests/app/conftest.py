"""What the tests of the app share."""

import sys

import pytest
import torch

from heterofl_flwr.app import run_app
from heterofl_flwr.report import page as pages
from heterofl_flwr.report.page import write_page


@pytest.fixture(scope="module", autouse=True)
def _no_page():
    """Leave out the page and its figures, which take longer than these runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "write_page", lambda folder: folder.report)
        yield


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Run in an empty folder, on a machine without a GPU, data or a cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("HETEROFL_DATA", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def started(machine, monkeypatch):
    """Return the requests of runs that ``heterofl run`` starts, each with its option ``log``. Each fails at once."""
    requests = []

    def run_request(request, *, log):
        requests.append((request, log))
        raise run_app.RunError("told so")

    monkeypatch.setattr(run_app, "run_request", run_request)
    return requests


@pytest.fixture
def page(monkeypatch):
    """Let the runs of a test write their page."""
    monkeypatch.setattr(pages, "write_page", write_page)
