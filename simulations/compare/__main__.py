"""Set methods beside one another: what each reached on one split, and for how many rounds, bytes and multiplications.

Runs are the folders that ``heterofl run`` and ``simulations.sweep`` leave, at any depth below the named folders.
Finished runs on the same data and split are compared; runs that differ in nothing but the seed are one method.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from heterofl_flwr.core import formatting
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report.drawing import to_svg_file
from heterofl_flwr.runs.files import remove, write_atomic
from heterofl_flwr.runs.metrics import SCOPES, headline_kind, mode_of
from heterofl_flwr.runs.origin import command
from simulations.compare.curves import AXES, axes_of, curve, draw, spent_until
from simulations.compare.methods import Contestant, contestants
from simulations.paper.runs import file_name, portable, read_runs
from simulations.program import parser_of, status_of
from simulations.statistics import summarise
from simulations.tables import Table, to_markdown

HEADER = """# Methods compared

`{command}` wrote this.

Means over seeds, ± the standard deviation. Bytes are those of the training messages, measured on them, both ways.
Multiplications are those of all clients' training, where all have equally many examples; a backward pass counts as two
forward passes. Seconds are those of the machine that ran it, evaluation included. Where each client has a model of its
own (Standalone, LG-FedAvg, FedH2L), global accuracy is the mean of theirs on the whole test set.
"""


def write(paths: Sequence[Path], out: Path, targets: Sequence[float], command: str) -> str:
    """Write ``compare.md``, a file of values for each split, and figures; return a line that says how many."""
    runs, unreadable = read_runs(paths)
    found = contestants(runs)
    if not found:
        raise ConfigError(
            f"no finished run in {', '.join(map(str, paths))}: {len(runs)} unfinished, {len(unreadable)} unreadable"
        )
    files: dict[str, bytes] = {}
    parts = [HEADER.format(command=portable(command))]
    for (data, split), own in found.items():
        parts += _section(data, split, own, targets, files)
    parts += [f"- left out, unfinished: {run.name}" for run in runs if not run.finished]
    parts += [f"- left out, unreadable: {portable(line)}" for line in unreadable]
    files["compare.md"] = ("\n".join(parts) + "\n").encode()
    for name, content in files.items():
        write_atomic(out / name, content)
    for path in (out / "figures").glob("compare-*"):
        if f"figures/{path.name}" not in files:  # its runs are gone
            remove(path)
    number = sum(len(own) for own in found.values())
    return f"{number} methods on {len(found)} splits: {len(files)} files in {out}"


def _section(
    data: str, split: str, own: Sequence[Contestant], targets: Sequence[float], files: dict[str, bytes]
) -> Iterator[str]:
    """Yield the text about one split, and put its other files into ``files``."""
    place, metrics = f"{file_name(data)}-{file_name(split)}", metrics_of(own)
    files[f"compare-{place}.csv"] = to_csv(own, data, split).encode()
    yield f"## {data}, {split}\n"
    yield to_markdown(reached_table(own)).partition("\n\n")[2]
    for metric in metrics[:1]:
        for target in targets or ((0.5, 0.9) if mode_of(metric) == "max" else ()):
            yield f"#{to_markdown(target_table(own, metric, target))}"
    for metric, axis in product(metrics, axes_of(own)):
        if figure := draw(own, metric, axis):
            name = f"figures/compare-{place}-{metric}-{axis}.svg"
            files[name] = to_svg_file(figure, name)
            yield f"![{metric.replace('-', ' ')} over {axis}]({name})\n"
    yield "Made by, for the first seed:\n"
    yield from (f"- {one.label}: `{portable(one.runs[0].command)}`" for one in own)
    yield ""


def metrics_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return the metrics of which there are values: global, local and of the worst client."""
    records = [record for one in contestants for run in one.runs for record in run.records]
    kind = headline_kind(records)
    return [f"{scope}-{kind}" for scope in SCOPES if any(f"{scope}-{kind}" in record.evaluate for record in records)]


def reached_table(contestants: Sequence[Contestant]) -> Table:
    """Return what each method reached after its last round, mean and deviation over seeds, and what it spent."""
    metrics, axes = metrics_of(contestants), axes_of(contestants)[1:]
    rows = []
    for one in contestants:
        # Measured on the messages, both ways.
        records = [record for run in one.runs for record in run.records]
        sent = sum(record.bytes_down + record.bytes_up for record in records) / sum(len(own.rates) for own in records)
        totals = (_write(axis, [AXES[axis].spent(run)[-1] for run in one.runs]) for axis in axes)
        seeds, rounds = ", ".join(str(run.seed) for run in one.runs), str(one.runs[0].settings.num_rounds)
        ends = (_final(one, metric) for metric in metrics)
        rows.append((one.label, seeds, rounds, *ends, formatting.size(sent), *totals))
    names = (metric.replace("-", " ") for metric in metrics)
    header = ("method", "seeds", "rounds", *names, "bytes a client and round", *axes)
    return Table("tab:reached", "After the last round", header, tuple(rows))


def target_table(contestants: Sequence[Contestant], metric: str, target: float) -> Table:
    """Return what each method had spent when it first reached a target: the mean over the seeds that did."""
    axes, rows = axes_of(contestants), []
    for one in contestants:
        spent = {axis: [spent_until(run, metric, target, axis) for run in one.runs] for axis in axes}
        reached = {axis: [value for value in values if value is not None] for axis, values in spent.items()}
        cells = (_write(axis, values) for axis, values in reached.items())
        rows.append((one.label, f"{len(reached['rounds'])} of {len(one.runs)}", *cells))
    title = f"Until {metric.replace('-', ' ')} of {formatting.score(metric, target)}"
    note = "At the first evaluation that reached it; the mean over the seeds that did."
    return Table(f"tab:{metric}-{target:g}", title, ("method", "seeds that did", *axes), tuple(rows), note)


def to_csv(contestants: Sequence[Contestant], data: str, split: str) -> str:
    """Return a row for each run and evaluation, with what was spent by then."""
    metrics, rows = metrics_of(contestants), []
    for label, run in ((one.label, run) for one in contestants for run in one.runs):
        columns = zip(*(axis.spent(run) for axis in AXES.values()), strict=True)
        for record, spent in zip(run.records, columns, strict=True):
            if any(metric in record.evaluate for metric in metrics):
                values = [str(record.evaluate.get(metric, "")) for metric in metrics]
                numbers = [f"{value:.10g}" for value in spent]
                rows.append([data, split, label, str(run.seed), run.commit, *numbers, *values])
    header = ["dataset", "split", "method", "seed", "commit", *AXES, *metrics]
    return f"{formatting.render(header, rows, 'csv')}\n"


def _final(one: Contestant, metric: str) -> str:
    points = curve(one, metric, "rounds")
    if not points:
        return formatting.NOTHING
    reached = points[-1].reached
    shown = formatting.score(metric, reached.mean)
    if reached.deviation is None:
        return shown
    scale, unit = (100, " %") if metric.endswith("accuracy") else (1, "")
    return f"{shown.removesuffix(' %')} ± {scale * reached.deviation:.1f}{unit}"


def _write(axis: str, values: Sequence[float]) -> str:
    return AXES[axis].write(summarise(values).mean) if values else formatting.NOTHING


EXAMPLES = """
examples:
  python -m simulations.sweep -m experiment=compare data=digits seed=0,1,2
  python -m simulations.compare runs/jobs --out runs/compare
  python -m simulations.compare runs/jobs --target 0.8 --target 0.95
"""
PROGRAM = "simulations.compare"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(PROGRAM, __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="a run's folder, or one that holds some")
    out = Path("runs", "compare")
    parser.add_argument("--out", type=Path, default=out, metavar="FOLDER", help="default: %(default)s")
    reached = "when did each method reach this? Global accuracy, or the data set's own metric; may be given several "
    reached += "times; default: 0.5 and 0.9"
    parser.add_argument("--target", type=float, action="append", default=[], metavar="VALUE", help=reached)
    options = parser.parse_args(arguments)
    return status_of(PROGRAM, lambda: print(write(options.runs, options.out, options.target, command())))


if __name__ == "__main__":
    sys.exit(main())
