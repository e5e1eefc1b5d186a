"""The synthetic run of tests/runs."""

from tests.runs.conftest import build, costs, costs_of, fake, few, folder, record, records, simulated

__all__ = ["build", "costs", "costs_of", "fake", "few", "folder", "record", "records", "simulated"]
