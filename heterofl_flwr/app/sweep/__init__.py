"""Run the jobs of a sweep with Hydra, one after the other or in parallel.

The jobs are all combinations of the values, or the rows of an experiment, such as a table of the paper. Arguments are
Hydra's: group=option, key=value, key=value,value. 'heterofl sweep --help' lists groups and values, 'heterofl settings'
explains the settings. A repeated command skips finished jobs and resumes interrupted jobs. The final table shows the
mean and deviation over seeds, and the differences from the first row.
"""

import argparse

SUMMARY = "run a sweep: several mixes, seeds, a table of the paper"
EXAMPLES = """
examples:
  heterofl sweep -m mix=a1-e1,a1-e4 seed=0,1                   four jobs on scikit-learn's digits
  heterofl sweep -m experiment=table7 seed=0,1,2 dry=true      only list the jobs, with the time that they take
  heterofl sweep -m data=mnist method=fedavg,heterofl hydra/launcher=joblib
"""


def run(args: argparse.Namespace) -> int:
    """Run the sweep."""
    from heterofl_flwr.app.sweep.command import run_sweep  # loads Hydra and torch

    return run_sweep(args.arguments)
