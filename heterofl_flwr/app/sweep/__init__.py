"""Run the jobs of a sweep with Hydra, one after the other or in parallel.

The jobs are all combinations of the given values, or the rows of an experiment, such as a table of the paper. All
arguments are Hydra's: group=option, key=value, key=value,value. 'heterofl sweep --help' lists groups and all values,
'heterofl settings' says what each setting means. A repeated command skips finished jobs and resumes interrupted
jobs. In the final table, jobs that differ only in the seed form a row with the mean, minimum and maximum of results.
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
