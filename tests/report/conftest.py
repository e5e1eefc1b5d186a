"""The synthetic run of tests/runs."""

from tests.runs.conftest import build, costs, fake, folder, record, records, simulated

__all__ = ["build", "costs", "fake", "folder", "record", "records", "simulated"]
