"""Tables of results and costs of configurations over seeds, and CSV files with the values of each run."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from heterofl_flwr.core import formatting
from simulations.results.configurations import Configuration, Places, Reached, metrics_of, reached
from simulations.results.formats import Table, show_interval, show_summary, to_csv
from simulations.results.paper import AGREES, DIFFERS, TOO_FEW, Cell, Key, Printed, by_job, departures
from simulations.results.runs import Run, portable
from simulations.results.spent import AXES, axes_of, spent, spent_until
from simulations.results.statistics import summarise


def reached_table(configurations: Sequence[Configuration], printed: Printed) -> Table:
    """Return the table of results over seeds, with the paper's numbers for jobs that it prints."""
    rows: list[tuple[str, ...]] = []
    beside = []
    for own in reached(configurations):
        seeds, rounds = (", ".join(map(str, dict.fromkeys(texts))) for texts in zip(
            *((run.seed, run.rounds) for run, _ in own.runs), strict=True
        ))  # fmt: skip
        ends = show_summary(own.final), show_summary(own.best)
        rows.append((own.configuration.label, own.metric.replace("-", " "), seeds, rounds, *ends))
        beside.append((own.evaluations, *_beside(own, _cells(own, printed))))
    header: tuple[str, ...] = ("configuration", "metric", "seeds", "rounds", "final", "best")
    if any(row[2] for row in beside):
        header += ("best of", "one run, 95 %", "paper", "difference", "verdict")
        rows = [(*row, *more) for row, more in zip(rows, beside, strict=True)]
    return Table("tab:reached", "Reached", header, tuple(rows))


def _cells(own: Reached, printed: Printed) -> Sequence[Cell]:
    job = own.configuration.job
    return printed.get((job, own.metric), ()) if job else ()


def _beside(own: Reached, cells: Sequence[Cell]) -> tuple[str, str, str, str]:
    """Return four texts: prediction interval, printed numbers, our best value minus the printed numbers, verdicts."""
    interval = show_interval(own.best.prediction) if cells else ""
    numbers = ", ".join(f"{cell.printed} (Table {cell.table})" for cell in cells)
    less = ", ".join(f"{own.best.mean - cell.value:+.2f}" for cell in cells)
    return interval, numbers, less, ", ".join(dict.fromkeys(cell.verdict(own.best) for cell in cells))


def spent_table(configurations: Sequence[Configuration]) -> Table:
    """Return the table of costs, as means over seeds."""
    axes, rows = axes_of(configurations), []
    for one in configurations:
        asked = sum(len(record.rates) for run in one.runs for record in run.records)
        sent = sum(spent(run, "bytes")[-1] for run in one.runs) / asked
        totals = (_mean(axis, [spent(run, axis)[-1] for run in one.runs]) for axis in axes)
        rows.append((one.label, formatting.size(sent), *totals))
    header = ("configuration", "bytes a client and round", *axes)
    return Table("tab:spent", "Spent", header, tuple(rows))


def target_table(configurations: Sequence[Configuration], metric: str, target: float) -> Table:
    """Return the table of costs until a target was first reached, as means over the seeds that reached it."""
    axes, rows = axes_of(configurations), []
    for one in configurations:
        reached_at = {axis: [spent_until(run, metric, target, axis) for run in one.runs] for axis in axes}
        found = {axis: [value for value in values if value is not None] for axis, values in reached_at.items()}
        cells = (_mean(axis, values) for axis, values in found.items())
        rows.append((one.label, f"{len(found['rounds'])} of {len(one.runs)}", *cells))
    title = f"Until {metric.replace('-', ' ')} of {formatting.score(metric, target)}"
    note = "At the first evaluation that reached it; the mean over the seeds that did."
    return Table(f"tab:{metric}-{target:g}", title, ("configuration", "seeds that did", *axes), tuple(rows), note)


def _mean(axis: str, values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    return AXES[axis].write(summarise(known).mean) if known else formatting.NOTHING


WIDE = 10.0
"""Width of a prediction interval, in points, above which it tells little."""


def count_verdicts(cells: Sequence[Cell], found: Mapping[Key, Reached]) -> list[str]:
    """Return a line for all printed results, and a line for each group of tables.

    A line says how many results have a run, and how many of these agree or differ. A result is a job and a metric. A
    result that is printed in two tables is counted once.
    """
    lines = []
    for group in ("", *dict.fromkeys(cell.group for cell in cells)):
        by_key = by_job(cell for cell in cells if group in ("", cell.group))
        run = {key: found[key].best for key in by_key if key in found}
        verdicts = {key: {cell.verdict(best) for cell in by_key[key]} for key, best in run.items()}
        single = {
            key: next(verdict for verdict in (TOO_FEW, DIFFERS, AGREES) if verdict in own)
            for key, own in verdicts.items()
        }
        numbers = Counter(single.values())
        agreeing = [run[key].prediction for key, verdict in single.items() if verdict == AGREES]
        wide = sum(high - low > WIDE for low, high in filter(None, agreeing))
        note = f" ({wide} by an interval wider than {WIDE:g} points)" if wide else ""
        lines.append(
            f"{group and f'{group}: '}{len(run)} of {len(by_key)} printed results have a run: {numbers[AGREES]} "
            f"agree{note}, {numbers[DIFFERS]} differ, {numbers[TOO_FEW]} have too few seeds to tell"
        )
    return lines


JOB = ("dataset", "split", "configuration", "metric")
ORIGIN = ("parameters", "seconds", "failures", "commit", "machine", "folder", "command", "note")
RUNS = (*JOB, "seed", "rounds", "final", "best", "best-round", "paper", "table", *ORIGIN)


def runs_csv(places: Places, printed: Printed) -> str:
    """Return CSV with a row for each run and metric; ``note`` has the differences from the paper's job.

    Values from too few clients are left out, here and in ``curves_csv``.
    """
    rows = []
    for place, configurations in places.items():
        for own in reached(configurations):
            cells = _cells(own, printed)
            numbers = " ".join(cell.printed for cell in cells), " ".join(cell.table for cell in cells)
            for run, (final, best, best_round) in own.runs:
                scores = (round(final, 4), round(best, 4), best_round)
                values = (*place, own.configuration.label, own.metric, run.seed, run.rounds, *scores, *numbers)
                rows.append(dict(zip(RUNS, (*values, *_origin(run)), strict=True)))
    return to_csv(RUNS, rows)


def _origin(run: Run) -> tuple[object, ...]:
    parameters = "" if run.parameters is None else round(run.parameters, 1)
    note = "; ".join(departures(run))
    origin = run.commit, run.machine, portable(str(run.path)), portable(run.command)
    return parameters, round(run.seconds, 1), run.failures, *origin, note and f"not as published: {portable(note)}"


def curves_csv(places: Places) -> str:
    """Return CSV with a row for each run and evaluation, with the costs until then."""
    metrics = tuple(dict.fromkeys(metric for own in places.values() for metric in metrics_of(own)))
    rows = (
        dict(zip(JOB[:3], (*place, one.label), strict=True)) | {"seed": run.seed} | values
        for place, own in places.items()
        for one in own
        for run in one.runs
        for values in _evaluations(run, metrics)
    )
    return to_csv((*JOB[:3], "seed", *AXES, *metrics), rows)


def _evaluations(run: Run, metrics: Sequence[str]) -> Iterator[dict[str, object]]:
    costs = zip(*(spent(run, axis) for axis in AXES), strict=True)
    for values, so_far in zip(run.scores.values(), costs, strict=True):
        if found := {metric: values[metric] for metric in metrics if metric in values}:
            yield {name: f"{value:.10g}" for name, value in (*zip(AXES, so_far, strict=True), *found.items())}
