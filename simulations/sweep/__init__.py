"""Sweeps: from a configuration to jobs, from jobs to runs, with nothing done twice."""
