"""Tables of results and costs of configurations over seeds, and CSV files with the values of each run."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from heterofl_flwr.core import formatting
from simulations.program import sections_beside
from simulations.results.configurations import Configuration, Places, Reached, metrics_of, possible, reached, shown
from simulations.results.paper import AGREES, DIFFERS, TOO_FEW, Cell, Key, Printed, by_job, departures
from simulations.results.runs import AUTHORS_SCORES, Run, Scores, chosen_round, portable
from simulations.results.spent import AXES, axes_of, spent, spent_until
from simulations.results.statistics import show_interval, show_spread, show_summary, summarise

NOTES = sections_beside(__file__, "notes.md")
"""Notes of tables, by title."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. All rows have as many cells as the header."""

    label: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # a sentence below it


def to_markdown(table: Table) -> str:
    """Return a Markdown section with the table."""
    shown = formatting.render(table.header, table.rows, "markdown") if table.rows else ""
    parts = [f"## {table.title}", shown, table.note]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_latex(table: Table) -> str:
    """Return a LaTeX ``table`` that needs no package."""
    caption = formatting.latex(" ".join(filter(None, [f"{table.title}.", table.note])))
    parts = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{table.label}}}"]
    return "\n".join([*parts, formatting.render(table.header, table.rows, "latex"), r"\end{table}", ""])


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as comma-separated values, with a header; missing values are empty."""
    return formatting.render(columns, [[str(row.get(column, "")) for column in columns] for row in rows], "csv") + "\n"


def reached_table(configurations: Sequence[Configuration], printed: Printed) -> Table:
    """Return the table of results over seeds, with the paper's numbers for jobs that it prints."""
    header: tuple[str, ...] = ("configuration", "metric", "seeds", "rounds", "final", "best")
    beside = ("best of", "one run, 95 %", "paper", "difference", "verdict")
    rows: list[tuple[str, ...]] = []
    for own in reached(configurations):
        runs, cells = [run for run, _ in own.runs], _cells(own, printed)
        ends = show_summary(own.final), show_summary(own.best)
        row = (own.configuration.label, own.metric.replace("-", " "), _distinct(run.seed for run in runs))
        rows.append((*row, _distinct(run.rounds for run in runs), *ends, own.evaluations, *_beside(own, cells)))
    if any(row[-3] for row in rows):
        header += beside
    return Table("tab:reached", "Reached", header, tuple(row[: len(header)] for row in rows))


def _cells(own: Reached, printed: Printed) -> Sequence[Cell]:
    job = own.configuration.job
    return printed.get((job, own.metric), ()) if job else ()


def _distinct(values: Iterable[object]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def _beside(own: Reached, cells: Sequence[Cell]) -> tuple[str, str, str, str]:
    """Return four texts: prediction interval, printed numbers, our best value minus the printed numbers, verdicts."""
    interval = show_interval(own.best.prediction) if cells else ""
    numbers = ", ".join(f"{cell.printed} (Table {cell.table})" for cell in cells)
    less = ", ".join(f"{own.best.mean - cell.value:+.2f}" for cell in cells)
    return interval, numbers, less, _distinct(cell.verdict(own.best) for cell in cells)


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
    header = ("configuration", "seeds that did", *axes)
    return Table(f"tab:{metric}-{target:g}", title, header, tuple(rows), NOTES["Until"])


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
        numbers, wide = Counter[str](), 0
        for key in by_key.keys() & found.keys():
            best = found[key].best
            verdicts = {cell.verdict(best) for cell in by_key[key]}
            verdict = next(verdict for verdict in (TOO_FEW, DIFFERS, AGREES) if verdict in verdicts)
            low, high = best.prediction or (0.0, 0.0)
            numbers[verdict] += 1
            wide += verdict == AGREES and high - low > WIDE
        note = f" ({wide} by an interval wider than {WIDE:g} points)" if wide else ""
        lines.append(
            f"{group and f'{group}: '}{numbers.total()} of {len(by_key)} printed results have a run: {numbers[AGREES]} "
            f"agree{note}, {numbers[DIFFERS]} differ, {numbers[TOO_FEW]} have too few seeds to tell"
        )
    return lines


def authors_table(found: Mapping[Key, Reached]) -> Table:
    """Return the table that compares our runs with the authors' code, for jobs that their code has run."""
    title = "MNIST, beside the authors' code"
    header = ("job", "metric", "seeds", "rounds", "ours", "the authors' code", "difference")
    rows = tuple(row for own in found.values() for row in _beside_authors(own))
    return Table("tab:authors", title, header, rows, NOTES[title])


def _beside_authors(own: Reached) -> Iterator[tuple[str, ...]]:
    """Yield rows that compare our runs with theirs: means over each half of the common test rounds, and best rounds."""
    job, metric = own.configuration.job, own.metric
    theirs = [run.authors for run, _ in own.runs if run.authors]
    if job is None or not theirs or metric not in AUTHORS_SCORES.values() or job.repeats_global(metric):
        return
    ours = [{number: values for number, values in run.scores.items() if metric in values} for run, _ in own.runs]
    both = sorted(set.intersection(*map(set, (*ours, *theirs))))

    def value(scores: Scores, rounds: Sequence[int]) -> float:
        """Return the mean in some rounds; without any, the value in the best of the common rounds."""
        rounds = rounds or [chosen_round({number: scores[number] for number in both}, metric)]
        return shown(metric, fmean(scores[number][metric] for number in rounds))

    parts = {f"{half[0]} to {half[-1]}": half for half in (both[: len(both) // 2], both[len(both) // 2 :]) if half}
    what = (f"{job}, {job.split}", metric.replace("-", " "), f"{len(ours)}, theirs {len(theirs)}")
    for name, rounds in (parts | {f"best of {len(both)}": []} if both else {}).items():
        values = ([value(scores, rounds) for scores in side] for side in (ours, theirs))
        one, two = (summarise(own, possible(metric)) for own in values)
        yield (*what, name, show_spread(one), show_spread(two), f"{one.mean - two.mean:+.2f}")


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
    seconds = round(sum(record.seconds for record in run.records), 1)
    failures = sum(len(record.failures) for record in run.records)
    note = "; ".join(departures(run))
    origin = run.commit, run.machine, portable(str(run.path)), portable(run.command)
    return parameters, seconds, failures, *origin, note and f"not as published: {portable(note)}"


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
