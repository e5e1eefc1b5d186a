"""``heterofl export``: a run's models as files that run without this package."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.errors import ConfigError

RUNS = 100
EXPLAIN = """
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


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this command."""
    this = subparsers.add_parser(
        "export",
        help="write a run's models as safetensors, torch.export and ONNX",
        description=EXPLAIN,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    this.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export the models, and print the table."""
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
    for table in write_table(out, f"The models of the run in `{args.folder.resolve().name}`."):
        _show(*table)
    print(f"table: {out / 'table.csv'}")
    return 0


def _show(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
