"""Data sets and models that experiments in ``conf/`` name."""
