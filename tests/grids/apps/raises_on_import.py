"""A module that cannot be imported."""

raise RuntimeError("no data set here")
