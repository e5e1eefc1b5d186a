"""``heterofl report``: the page, the figures and the tables of a run, made anew from its folder."""

import argparse
from pathlib import Path


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command."""
    this = subparsers.add_parser(
        "report",
        help="make the report of a run, and print its tables",
        description="Make a run's report.html and figures anew from its folder, and print its tables.",
    )
    this.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    this.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the report and print the tables."""
    from heterofl_flwr.report import RunFolder, write_report

    folder = RunFolder(args.folder)
    page = write_report(folder)
    show_tables(args.folder)
    print(f"report: {page}")
    return 0


def show_tables(path: Path) -> None:
    """Print the tables that end a run."""
    from rich.console import Console

    from heterofl_flwr.report import RunFolder, summary_table

    folder = RunFolder(path)
    Console().print(summary_table(folder.history(), folder.costs()))
