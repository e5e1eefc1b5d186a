"""The comparison as tables: what each method reached, and what it spent for that."""

import csv
import io
from collections.abc import Iterator, Sequence

from heterofl_flwr.core import formatting
from heterofl_flwr.runs.metrics import SCOPES, headline_kind, mode_of
from simulations.compare.curves import AMOUNTS, AXES, axes_of, curve, spent_until
from simulations.compare.methods import Contestant
from simulations.paper.runs import Run, portable
from simulations.paper.statistics import summarise
from simulations.paper.tables import Table

COLUMNS = ("method", "seeds", "rounds")


def metrics_of(contestants: Sequence[Contestant]) -> list[str]:
    """Return the metrics of which there are values: global, local and of the worst client."""
    records = [record for one in contestants for run in one.runs for record in run.records]
    kind = headline_kind(records)
    return [f"{scope}-{kind}" for scope in SCOPES if any(f"{scope}-{kind}" in record.evaluate for record in records)]


def reached_table(contestants: Sequence[Contestant]) -> Table:
    """Return what each method reached after its last round, mean and deviation over seeds, and what it took."""
    metrics, axes = metrics_of(contestants), axes_of(contestants)[1:]
    heads = (*COLUMNS, *(metric.replace("-", " ") for metric in metrics), "bytes a client and round", *axes)
    rows = tuple(
        (
            *_who(one),
            *(_final(one, metric) for metric in metrics),
            formatting.size(bytes_a_client(one)),
            *(_total(one, axis) for axis in axes),
        )
        for one in contestants
    )
    return Table("tab:reached", "After the last round", heads, rows)


def target_table(contestants: Sequence[Contestant], metric: str, target: float) -> Table:
    """Return what each method had spent when it first reached a target: the mean over the seeds that did."""
    name = f"{metric.replace('-', ' ')} of {formatting.score(metric, target)}"
    axes, rows = axes_of(contestants), []
    for one in contestants:
        spent = {axis: [spent_until(run, metric, target, axis) for run in one.runs] for axis in axes}
        came = [value is not None for value in spent["rounds"]]
        cells = (AMOUNTS[axis](_mean(values)) if any(came) else formatting.NOTHING for axis, values in spent.items())
        rows.append((one.label, f"{sum(came)} of {len(came)}", *cells))
    note = "At the first evaluation that reached it; the mean over the seeds that did."
    return Table(f"tab:{metric}-{target:g}", f"Until {name}", ("method", "seeds that did", *axes), tuple(rows), note)


def bytes_a_client(one: Contestant) -> float:
    """Return the bytes of training messages, both ways, of one client in one round, measured on the messages."""
    records = [record for run in one.runs for record in run.records]
    return sum(record.bytes_down + record.bytes_up for record in records) / sum(len(own.rates) for own in records)


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


def sources(contestants: Sequence[Contestant]) -> list[str]:
    """Return a line for each method that says how its runs were made."""
    return [f"- {one.label}: `{portable(one.runs[0].command)}`" for one in contestants]


def _evaluations(run: Run, metrics: Sequence[str]) -> Iterator[list[float | str]]:
    spent = [spending(run) for spending in AXES.values()]
    for number, record in enumerate(run.records):
        if any(metric in record.evaluate for metric in metrics):
            values = [record.evaluate.get(metric, "") for metric in metrics]
            yield [*(f"{own[number]:.10g}" for own in spent), *values]


def _who(one: Contestant) -> tuple[str, ...]:
    return one.label, ", ".join(str(run.seed) for run in one.runs), str(one.settings.num_rounds)


def _final(one: Contestant, metric: str) -> str:
    points = curve(one, metric, "rounds")
    if not points:
        return formatting.NOTHING
    reached = points[-1].reached
    shown = formatting.score(metric, reached.mean)
    if reached.deviation is None:
        return shown
    scale = 100 if metric.endswith("accuracy") else 1
    return f"{shown.removesuffix(' %')} ± {scale * reached.deviation:.1f}{' %' if scale == 100 else ''}"


def _total(one: Contestant, axis: str) -> str:
    return AMOUNTS[axis](summarise([AXES[axis](run)[-1] for run in one.runs]).mean)


def _mean(values: Sequence[float | None]) -> float:
    return summarise([value for value in values if value is not None]).mean


def targets_for(metric: str, asked: Sequence[float]) -> Sequence[float]:
    """Return the targets of a metric: those asked for, else half and nine tenths of an accuracy."""
    return asked or ((0.5, 0.9) if mode_of(metric) == "max" else ())
