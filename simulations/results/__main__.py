"""Show what the jobs of sweeps reached: final and best, over seeds, and for how many rounds, bytes and multiplications.

Runs are the folders that ``heterofl run`` and ``simulations.sweep`` leave, at any depth below the named folders. Those
that differ in nothing but the seed are one configuration. Runs of one data set and split are set side by side.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path

from matplotlib.figure import Figure

from heterofl_flwr.core.formatting import FORMATS, render
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report.drawing import to_svg_file
from heterofl_flwr.runs.metrics import mode_of
from heterofl_flwr.runs.origin import command
from simulations.program import parser_of, status_of, write_files
from simulations.results.configurations import Configuration, configurations, is_finished
from simulations.results.curves import axes_of
from simulations.results.figures import draw_curves, draw_levels, draw_reached
from simulations.results.runs import Run, file_name, portable, read_run, read_runs
from simulations.results.tables import (
    Places,
    curves_csv,
    jobs_csv,
    levels_table,
    metrics_of,
    reached,
    reached_by_level,
    reached_table,
    results_csv,
    spent_table,
    target_table,
)
from simulations.tables import to_markdown

HEADER = """# Results

`{command}` wrote this.

Bytes are those of the training messages, measured on them, both ways; the seed set of FedH2L is charged once to each
client that takes part. Multiplications are those of all clients'
training, where all have equally many examples; a backward pass counts as two forward passes. Seconds are those of the
machine that ran it, evaluation included. Where each client has a model of its own (Standalone, LG-FedAvg, FedH2L),
global accuracy is the mean of theirs on the whole test set.
"""


def read(paths: Sequence[Path]) -> tuple[Places, list[str]]:
    """Return the configurations in some folders, and what was left out and why, in lines."""
    runs, unreadable = read_runs(paths, read_run)
    found = configurations(runs)
    if not found:
        raise ConfigError(
            f"no finished run in {', '.join(map(str, paths))}: {len(runs)} unfinished, {len(unreadable)} unreadable"
        )
    unfinished = (run for run in runs if not is_finished(run))
    left_out = [f"left out, unfinished: {run.path.name}, {_rounds(run)}" for run in unfinished]
    return found, [*left_out, *(f"left out, unreadable: {portable(line)}" for line in unreadable)]


def _rounds(run: Run) -> str:
    return f"{run.rounds} of {run.settings.num_rounds} rounds"


def show(places: Places, style: str) -> str:
    """Return what was reached as text."""
    if style == "csv":
        return results_csv(places)
    tables = {place: reached_table(own) for place, own in places.items()}
    return "\n\n".join(f"{', '.join(place)}\n\n{render(own.header, own.rows, style)}" for place, own in tables.items())


def write(places: Places, left_out: Sequence[str], out: Path, targets: Sequence[float]) -> str:
    """Write the tables as ``results.md``, all values, and figures; return a line that says how many files."""
    files = {f"{name}.csv": make(places).encode() for name, make in CSV.items()}
    parts = [HEADER.format(command=portable(command()))]
    for place, own in places.items():
        parts += _section(place, own, targets, files)
    parts += [f"- {line}" for line in left_out]
    files["results.md"] = ("\n".join(parts) + "\n").encode()
    write_files(out, files, "figures/results-*")
    number = sum(len(own) for own in places.values())
    return f"{number} configurations on {len(places)} splits: {len(files)} files in {out}"


CSV = {"results": results_csv, "jobs": jobs_csv, "curves": curves_csv}


def _section(
    place: tuple[str, str], own: Sequence[Configuration], targets: Sequence[float], files: dict[str, bytes]
) -> Iterator[str]:
    """Yield the text about one data set and split, and put its figures into ``files``."""
    metrics, levels = metrics_of(own), reached_by_level(own)
    tables = [*filter(None, (reached_table(own), levels_table(levels, metrics), spent_table(own)))]
    for metric in metrics[:1]:
        tables += [target_table(own, metric, target) for target in targets or _usual(metric)]
    yield f"## {', '.join(place)}\n"
    yield from (f"#{to_markdown(table)}" for table in tables)
    drawn: dict[str, Figure | None] = {
        metric: draw_reached(list(found)) for metric, found in groupby(reached(own), lambda own: own.metric)
    }
    labels = [one.label for one in own]
    drawn |= {f"{metric}-levels": draw_levels(levels, metric, labels) for metric in metrics}
    drawn |= {f"{metric}-{axis}": draw_curves(own, metric, axis) for metric, axis in product(metrics, axes_of(own))}
    for what, figure in drawn.items():
        if figure is None:
            continue
        name = f"figures/results-{'-'.join(map(file_name, place))}-{what}.svg"
        files[name] = to_svg_file(figure, name)
        yield f"![{what.replace('-', ' ')}]({name})\n"
    yield "Made by, for the first seed:\n"
    yield from (f"- {one.label}: `{portable(one.runs[0].command)}`" for one in own)
    yield ""


def _usual(metric: str) -> tuple[float, ...]:
    """Return the targets where none is given."""
    return (0.5, 0.9) if mode_of(metric) == "max" else ()


EXAMPLES = """
examples:
  python -m simulations.sweep -m data=digits mix=a-e train.lr=0.02,0.05 seed=0,1,2
  python -m simulations.results runs/jobs                              print a table
  python -m simulations.results runs/jobs --format csv
  python -m simulations.results runs/jobs --out runs/results           write tables, values and figures
  python -m simulations.results runs/jobs --out runs/results --target 0.8 --target 0.95
"""
PROGRAM = "simulations.results"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(PROGRAM, __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="a run's folder, or one that holds some")
    parser.add_argument("--format", choices=FORMATS, default="table", help="how to print; default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write tables, values and figures there")
    when = (
        "when did each configuration reach this? Global accuracy, or the data set's own metric; may be given several "
    )
    when += "times; default: 0.5 and 0.9; goes with --out"
    parser.add_argument("--target", type=float, action="append", default=[], metavar="VALUE", help=when)
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.target and options.out is None:
            raise ConfigError("--target has no effect without --out: name a folder for the tables")
        places, left_out = read(options.runs)
        print(show(places, options.format).rstrip("\n"))
        for line in left_out:
            print(line, file=sys.stderr)
        if options.out:
            print(write(places, left_out, options.out, options.target))

    return status_of(PROGRAM, work)


if __name__ == "__main__":
    sys.exit(main())
