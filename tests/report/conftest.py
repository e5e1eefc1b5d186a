"""The synthetic run of tests/runs."""

from tests.runs.conftest import build, costs, fake, few, folder, record, records, simulated

__all__ = ["build", "costs", "fake", "few", "folder", "record", "records", "simulated"]
