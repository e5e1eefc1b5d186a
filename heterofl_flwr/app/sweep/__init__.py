"""Sweeps: from a configuration to jobs, from jobs to runs, with nothing done twice."""

from heterofl_flwr.common.errors import extra

with extra("sweeps"):
    import hydra as hydra
