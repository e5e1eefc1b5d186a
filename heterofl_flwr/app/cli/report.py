"""``heterofl report``: a run's report anew, and its tables."""

import argparse
from pathlib import Path

from rich.console import Console

from heterofl_flwr.report import RunFolder, summary_table, write_report


def run(args: argparse.Namespace) -> int:
    """Write the report of a run, and print its tables."""
    write_report(args.folder)
    show_results(args.folder)
    return 0


def show_results(path: Path) -> None:
    """Print the tables of a run, and where its report is."""
    folder = RunFolder(path)
    Console().print(summary_table(folder.history(), folder.costs()))
    print(f"report: {folder.report}")
