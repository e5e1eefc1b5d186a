"""The comparison as tables: what each method reached, and what it spent for that."""

import csv
import io
from collections.abc import Iterator, Sequence

from heterofl_flwr.core import formatting
from heterofl_flwr.runs.metrics import SCOPES, headline_kind, mode_of
from simulations.compare.curves import AXES, axes_of, curve, spent_until
from simulations.compare.methods import Contestant
from simulations.paper.runs import Run, portable
from simulations.paper.statistics import summarise
from simulations.paper.tables import Table


def metrics_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return the metrics of which there are values: global, local and of the worst client."""
    records = [record for one in contestants for run in one.runs for record in run.records]
    kind = headline_kind(records)
    return [f"{scope}-{kind}" for scope in SCOPES if any(f"{scope}-{kind}" in record.evaluate for record in records)]


def reached_table(contestants: Sequence[Contestant]) -> Table:
    """Return what each method reached after its last round, mean and deviation over seeds, and what it spent."""
    metrics, axes = metrics_of(contestants), axes_of(contestants)[1:]
    names = (metric.replace("-", " ") for metric in metrics)
    rows = []
    for one in contestants:
        # Measured on the messages, both ways.
        records = [record for run in one.runs for record in run.records]
        sent = sum(record.bytes_down + record.bytes_up for record in records) / sum(len(own.rates) for own in records)
        totals = (AXES[axis].write(_mean([AXES[axis].spent(run)[-1] for run in one.runs])) for axis in axes)
        who = (one.label, ", ".join(str(run.seed) for run in one.runs), str(one.settings.num_rounds))
        rows.append((*who, *(_final(one, metric) for metric in metrics), formatting.size(sent), *totals))
    header = ("method", "seeds", "rounds", *names, "bytes a client and round", *axes)
    return Table("tab:reached", "After the last round", header, tuple(rows))


def target_table(contestants: Sequence[Contestant], metric: str, target: float) -> Table:
    """Return what each method had spent when it first reached a target: the mean over the seeds that did."""
    axes, rows = axes_of(contestants), []
    for one in contestants:
        spent = {axis: [spent_until(run, metric, target, axis) for run in one.runs] for axis in axes}
        reached = {axis: [value for value in values if value is not None] for axis, values in spent.items()}
        cells = (AXES[axis].write(_mean(own)) if own else formatting.NOTHING for axis, own in reached.items())
        rows.append((one.label, f"{len(reached['rounds'])} of {len(one.runs)}", *cells))
    title = f"Until {metric.replace('-', ' ')} of {formatting.score(metric, target)}"
    note = "At the first evaluation that reached it; the mean over the seeds that did."
    return Table(f"tab:{metric}-{target:g}", title, ("method", "seeds that did", *axes), tuple(rows), note)


def to_csv(contestants: Sequence[Contestant], data: str, split: str) -> str:
    """Return a row for each run and evaluation, with what was spent by then."""
    file = io.StringIO()
    metrics = metrics_of(contestants)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["dataset", "split", "method", "seed", "commit", *AXES, *metrics])
    for one in contestants:
        for run in one.runs:
            writer.writerows([data, split, one.label, run.seed, run.commit, *row] for row in _evaluations(run, metrics))
    return file.getvalue()


def _evaluations(run: Run, metrics: Sequence[str]) -> Iterator[list[float | str]]:
    spent = [axis.spent(run) for axis in AXES.values()]
    for number, record in enumerate(run.records):
        if any(metric in record.evaluate for metric in metrics):
            values = [record.evaluate.get(metric, "") for metric in metrics]
            yield [*(f"{own[number]:.10g}" for own in spent), *values]


def sources(contestants: Sequence[Contestant]) -> list[str]:
    """Return a line for each method with the command that made its first run."""
    return [f"- {one.label}: `{portable(one.runs[0].command)}`" for one in contestants]


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


def _mean(values: Sequence[float]) -> float:
    return summarise(values).mean


def targets_for(metric: str, given: Sequence[float]) -> Sequence[float]:
    """Return the targets of a metric: the given ones, else half and nine tenths of an accuracy."""
    return given or ((0.5, 0.9) if mode_of(metric) == "max" else ())
