"""Make a run's report.html and figures anew, and print its tables; or compare several runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.app.argument_types import TABLE_FORMATS, read_path
from heterofl_flwr.common.errors import ConfigError, extra, name_faults

SUMMARY = "make the report of a run, and print its tables"
EXAMPLES = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``heterofl report``."""
    text = "a run's folder; several runs are compared on one page and in one table"
    parser.add_argument("folders", type=read_path, nargs="+", metavar="RUN", help=text)
    out = "page of a comparison; by default comparison.html"
    parser.add_argument("--out", type=read_path, metavar="FILE", help=out)
    metric = "metric of the runs' histories, as a column of a comparison: f1, a/f1 (of a level), train/f1; repeatable"
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help=metric)
    style = "form of a comparison's table; by default table"
    parser.add_argument("--format", choices=TABLE_FORMATS, help=style)


def run(args: argparse.Namespace) -> int:
    """Write the report of one run, or compare several runs."""
    from heterofl_flwr.report import write_report

    if len(args.folders) > 1:
        _compare(args.folders, args.out or Path("comparison.html"), args.format or "table", args.metric)
        return 0
    if options := [f"--{name}" for name in ("out", "metric", "format") if getattr(args, name)]:
        raise ConfigError(f"only a comparison has {', '.join(options)}: found 1 run, expected 2 or more")
    write_report(args.folders[0])
    show_results(args.folders[0])
    return 0


def _compare(paths: Sequence[Path], out: Path, style: str, metrics: Sequence[str]) -> None:
    from heterofl_flwr.core.formatting import render
    from heterofl_flwr.runs.folder import RunFolder

    with extra("report"):
        from heterofl_flwr.report.compare import write_comparison

    # By path, because a command line such as runs/baseline runs/* names a run twice.
    folders = {path.resolve(): RunFolder(path) for path in paths}
    heads, rows = write_comparison(list(folders.values()), out, metrics)
    print(render(heads, rows, style))
    print(f"\ncomparison: {out}", file=sys.stderr)


def show_results(path: Path) -> None:
    """Print the tables of a run and the path of its report."""
    from rich.console import Console

    from heterofl_flwr.report import RunFolder, summary_table

    folder = RunFolder(path)
    Console().print(summary_table(folder.history(), folder.costs(), folder.settings()))
    print(f"report: {folder.report}")


def lost_evaluation(path: Path) -> str:
    """Return an error message if no client replied in a run's last evaluation by clients; '' otherwise."""
    from heterofl_flwr.report import RunFolder

    record = next((one for one in reversed(RunFolder(path).history()) if one.evaluate_asked), None)
    if record is None or record.evaluate_answers:
        return ""
    reasons = name_faults("partition", record.evaluate_failures)
    return f"in round {record.server_round} no client evaluated the global model: {reasons}"
