"""``heterofl report``: write a run's report again, and print its tables."""

import argparse
from pathlib import Path

from heterofl_flwr.app.arguments import read_path

SUMMARY = "make the report of a run, and print its tables"
DESCRIPTION = "Make a run's report.html and figures anew from its folder, and print its tables."
EXAMPLES = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("folder", type=read_path, metavar="RUN", help="the run's folder")


def run(args: argparse.Namespace) -> int:
    """Write the report of a run, and print its tables."""
    from heterofl_flwr.report import write_report

    write_report(args.folder)
    show_results(args.folder)
    return 0


def show_results(path: Path) -> None:
    """Print the tables of a run, and the path of its report."""
    from rich.console import Console

    from heterofl_flwr.report import RunFolder, summary_table

    folder = RunFolder(path)
    Console().print(summary_table(folder.history(), folder.costs()))
    print(f"report: {folder.report}")
