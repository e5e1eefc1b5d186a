"""``heterofl report`` and ``heterofl export``: what is made of a run's folder."""

import argparse
from pathlib import Path

from heterofl_flwr.app.cli import Subparsers, add_command
from heterofl_flwr.errors import ConfigError

RUNS = 100
"""Forward passes of which the latency is the median."""

REPORT = "Make a run's report.html and figures anew from its folder, and print its tables."
EXPORT = """
Write the models of a run into RUN/exports, a folder each, so that they run without this package:

  model.safetensors  the tensors, for the model's own code; batch norm has the statistics that were measured
  model.pt2          a program of torch.export: runs wherever torch does, batch norm folded
  model.onnx         the same for onnxruntime and its like, without torch; needs heterofl-flwr[export]
  manifest.json      what goes in and comes out, how inputs are prepared, what the model costs and is worth

Every file is opened again and compared with the model on the run's test data, before it gets its name. A table of all
models (parameters, MACs, size, latency, accuracy) is printed, and written as table.csv and README.md.
"""
EXAMPLES = """
examples:
  heterofl export runs/mine
  heterofl export runs/mine --level c --formats onnx
  heterofl export runs/mine --level b --level 0.0625 --out models
"""


def add_report(subparsers: Subparsers) -> None:
    """Add ``heterofl report``."""
    this = add_command(subparsers, "report", run_report, "make the report of a run, and print its tables", REPORT)
    this.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")


def add_export(subparsers: Subparsers) -> None:
    """Add ``heterofl export``."""
    summary = "write a run's models as safetensors, torch.export and ONNX"
    this = add_command(subparsers, "export", run_export, summary, EXPORT, EXAMPLES)
    this.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    this.add_argument(
        "--level", action="append", metavar="LEVEL", help="such as c, or a rate; repeatable; by default all"
    )
    this.add_argument(
        "--formats",
        default="safetensors,pt2,onnx",
        metavar="NAMES",
        help="some of safetensors, pt2 and onnx, with commas; by default all three",
    )
    this.add_argument("--out", type=Path, metavar="DIR", help="where to; by default RUN/exports")
    this.add_argument("--no-latency", action="store_true", help="do not measure how long an example takes")


def run_report(args: argparse.Namespace) -> int:
    """Write the report and print the tables."""
    from heterofl_flwr.report import RunFolder, write_report

    page = write_report(RunFolder(args.folder))
    show_tables(args.folder)
    print(f"report: {page}")
    return 0


def show_tables(path: Path) -> None:
    """Print the tables that end a run."""
    from rich.console import Console

    from heterofl_flwr.report import RunFolder, summary_table

    folder = RunFolder(path)
    Console().print(summary_table(folder.history(), folder.costs()))


def run_export(args: argparse.Namespace) -> int:
    """Export the models, and print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from heterofl_flwr.app.exporting import RunModels
    from heterofl_flwr.export.formats import formats_named
    from heterofl_flwr.export.table import write_table

    formats = [name.strip() for name in args.formats.split(",")]
    formats_named(formats)  # before anything is loaded
    models = RunModels(args.folder)
    names = models.chosen(args.level or ["all"])
    out = args.out or args.folder / "exports"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; expected a folder, or none")
    for folder in models.export(names, out, formats=formats, runs=0 if args.no_latency else RUNS):
        print(f"{folder}: checked", flush=True)
    for heads, rows in write_table(out, f"The models of the run in `{args.folder.resolve().name}`."):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, head in enumerate(heads):
            table.add_column(head, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    print(f"table: {out / 'table.csv'}")
    return 0
