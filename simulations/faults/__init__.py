"""Faults that are made on purpose, each in a run of its own, and what became of the run."""
