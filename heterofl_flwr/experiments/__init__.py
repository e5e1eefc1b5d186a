"""Data sets and models for the experiments in ``conf/``, which refer to them by name."""
