"""The tables that set runs beside the paper and beside the authors' code: in Markdown, in LaTeX and as values."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from heterofl_flwr.core.formatting import NOTHING, render
from simulations.paper.printed import DATA, TABLES, Cell, Job
from simulations.paper.runs import RECORDED, Gathered, Run, chosen_round, csv_text, portable
from simulations.paper.statistics import (
    DIFFERS,
    Group,
    Interval,
    Key,
    Result,
    Summary,
    as_printed,
    by_job,
    half_width_of_difference,
    summarise,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))

OURS = ("metric", "seeds", "final", "best")
THEIRS = ("one run, 95 %", "paper", "difference", "verdict")
VARIED = ("norm", "Scaler", "mask")
METRICS = {"accuracy": "accuracy, IID", "local": "local, non-IID", "global": "global, non-IID"}
BY = "run by python -m simulations.reference; authors.csv beside a run's history says more"


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text; every row is as long as the header."""

    label: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # a sentence below it


def to_markdown(table: Table) -> str:
    """Return a section with the table."""
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in table.rows]
    parts = [f"## {table.title}", *([render(table.header, rows, "markdown")] if rows else []), table.note]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_latex(table: Table) -> str:
    """Return a ``table`` that needs no package."""
    caption = escape(" ".join(filter(None, [f"{table.title}.", table.note])))
    # A bracket after the end of a row would be taken for its optional argument, so every row begins with braces.
    header, *rows = (f"{{}}{' & '.join(map(escape, row))} \\\\" for row in (table.header, *table.rows))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{{table.label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            *(r"\hline", header, r"\hline", *rows, r"\hline"),
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Return text as LaTeX prints it."""
    return _SPECIAL.sub(lambda match: _LATEX[match[0]], text)


def paper_tables(found: Sequence[Result]) -> list[Table]:
    """Return the rows of Tables 7 to 9, 4 and 5 that have a run."""
    tables = []
    for number, title in TABLES.items():
        own = [result for result in found if result.cell.table == number]
        ablation = number in "45"
        rows = tuple(_row(result, result.group, ablation=ablation) for result in own if result.group)
        if rows:
            header = ("model", *(("data", *VARIED) if ablation else ()), *OURS, *THEIRS)
            note = f"{len(rows)} of {len(own)} numbers have a run."
            tables.append(Table(f"tab:{number}", f"Table {number}: {title}", header, rows, note))
    return tables


def _row(result: Result, group: Group, *, ablation: bool) -> tuple[str, ...]:
    difference = NOTHING if result.difference is None else f"{result.difference:+.2f}"
    theirs = (shown(group.best.prediction), result.cell.printed, difference, result.verdict)
    variant = (group.job.data, *varied(group.job)) if ablation else ()
    return (group.job.mix, *variant, *_ours(group), *theirs)


def _ours(group: Group) -> tuple[str, ...]:
    seeds = ", ".join(str(run.seed) for run, _ in group.runs)
    return (METRICS.get(group.metric, group.metric), seeds, number(group.final), number(group.best))


def varied(job: Job) -> tuple[str, str, str]:
    """Return norm, Scaler and mask of a job."""
    scaler = ("yes" if job.scaler else "no") if "-" in job.mix else NOTHING
    return job.norm, scaler, "yes" if job.masked else "no"


def number(summary: Summary) -> str:
    """Return a mean with its standard deviation and interval, as far as there are enough values for them."""
    return f"{_spread(summary)} {shown(summary.interval)}" if summary.interval else _spread(summary)


def _spread(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.2f}")


def shown(interval: Interval | None) -> str:
    """Return an interval as text."""
    return f"[{', '.join(f'{end:.2f}' for end in interval)}]" if interval else NOTHING


def further_tables(groups: Mapping[Key, Group], cells: Iterable[Cell]) -> list[Table]:
    """Return the jobs that no table prints, by data set: those of the figures, or all without the paper."""
    printed = by_job(cells)
    beside = "beside the tables" if printed else "without the paper's numbers"
    tables = []
    for data, title in zip(DATA, TABLES.values(), strict=False):
        own = [group for key, group in groups.items() if group.job.data == data and key not in printed]
        rows = tuple((group.job.mix, group.job.assignment, *varied(group.job), *_ours(group)) for group in own)
        if rows:
            tables.append(Table(f"tab:{data}", f"{title}, {beside}", ("model", "assignment", *VARIED, *OURS), rows))
    return tables


def lists(gathered: Gathered, found: Sequence[Result]) -> list[Table]:
    """Return the lists that go with the tables: numbers that differ, runs that do not count, numbers without a run."""
    unreadable = tuple((portable(line),) for line in gathered.unreadable)
    made = [
        _differing([result for result in found if result.verdict == DIFFERS]),
        _runs("Unfinished", gathered.unfinished, lambda run: f"{run.rounds} of {run.settings.num_rounds} rounds"),
        _runs("Not as published", gathered.different, lambda run: "; ".join(run.differences)),
        _runs("Set aside: a later run has the same job and seed", gathered.repeated, lambda run: run.started),
        Table("tab:unreadable", "Unreadable", ("what is wrong",), unreadable),
        _without_run([result.cell for result in found if not result.group]),
    ]
    return [table for table in made if table.rows]


def _differing(found: Sequence[Result]) -> Table:
    rows = tuple(
        (
            f"Table {own.cell.table}",
            own.cell.job.data,
            _model(own.cell),
            METRICS.get(own.cell.metric, own.cell.metric),
            f"{own.group.best.mean:.2f}",
            shown(own.group.best.prediction),
            own.cell.printed,
            f"{own.difference:+.2f}",
        )
        for own in found
        if own.group and own.difference is not None
    )
    header = ("table", "data", "model", "metric", "best", "one run, 95 %", "paper", "difference")
    return Table("tab:printed-numbers-that-differ", "Printed numbers that differ", header, rows)


def _runs(title: str, runs: Iterable[Run], why: Callable[[Run], str]) -> Table:
    rows = tuple((run.path.name, run.job.data, run.name, why(run)) for run in runs)
    slug = title.partition(":")[0].lower().replace(" ", "-")
    return Table(f"tab:{slug}", title, ("folder", "data", "run", "why"), rows)


def _without_run(cells: Sequence[Cell]) -> Table:
    """Return what is missing, a row for each metric of a data set in a table."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for cell in cells:
        missing.setdefault((cell.table, cell.job.data, cell.metric), []).append(_model(cell))
    rows = tuple(
        (f"Table {table}", data, METRICS.get(metric, metric), str(len(names)), ", ".join(names))
        for (table, data, metric), names in missing.items()
    )
    return Table("tab:missing", "Printed numbers without a run", ("table", "data", "metric", "number", "models"), rows)


def _model(cell: Cell) -> str:
    variant = ", ".join(cell.job.variant)
    return f"{cell.job.mix} ({variant})" if variant else cell.job.mix


def authors_tables(groups: Mapping[Key, Group], cells: Iterable[Cell]) -> list[Table]:
    """Return the jobs that the authors' code did too: whole curves over seeds, then seed by seed; none without any."""
    own = [group for group in groups.values() if any(run.authors for run, _ in group.runs)]
    curves = Table(
        "tab:curves",
        "MNIST, beside the authors' code: all rounds",
        ("model", *VARIED, "metric", "seeds", "rounds", "ours", "the authors' code", "difference"),
        tuple(row for group in own for row in _halves(group)),
        f"Their code on the same data, {BY}. Each seed's value is its mean over all rounds that every run of both "
        "sides tested; then mean ± standard deviation over seeds, and the 95 % interval of the difference by Welch.",
    )
    printed = by_job(cells)
    seeds = Table(
        "tab:authors",
        "MNIST, beside the authors' code: best rounds",
        ("model", *VARIED, "metric", "seed", "rounds", "ours", "the authors' code", "difference", "paper"),
        tuple(row for group in own for row in _seeds(group, printed)),
        f"Their code, {BY}. Both are the best of the rounds that both tested; rounds: the last of them.",
    )
    return [table for table in (curves, seeds) if table.rows]


def _halves(group: Group) -> Iterator[tuple[str, ...]]:
    """Yield, for each half of the training, the means over the rounds that all runs of both sides tested."""
    ours = [run.scores(group.metric) for run, _ in group.runs]
    theirs = [run.authors for run, _ in group.runs if run.authors]
    shared = sorted(set.intersection(*(set(own) for own in (*ours, *theirs))))
    seeds = f"{len(ours)}, theirs {len(theirs)}"
    for half in filter(None, (shared[: len(shared) // 2], shared[len(shared) // 2 :])):
        one, two = (
            summarise(
                [as_printed(group.metric, fmean(own[each][RECORDED[group.metric]] for each in half)) for own in side]
            )
            for side in (ours, theirs)
        )
        difference, width = one.mean - two.mean, half_width_of_difference(one, two)
        interval = "" if width is None else f" [{difference - width:+.2f}, {difference + width:+.2f}]"
        what = (group.job.mix, *varied(group.job), METRICS[group.metric], seeds, f"{half[0]} to {half[-1]}")
        yield (*what, _spread(one), _spread(two), f"{difference:+.2f}{interval}")


def _seeds(group: Group, printed: Mapping[Key, Sequence[Cell]]) -> Iterator[tuple[str, ...]]:
    """Yield both sides' best round seed by seed, chosen among those that both tested."""
    metric, job = group.metric, group.job
    for run, _ in group.runs:
        both = run.scores(metric).keys() & run.authors.keys()
        if both:
            values = []
            for scores in (run.scores(metric), run.authors):
                tested = {number: scores[number] for number in both}
                values.append(as_printed(metric, tested[chosen_round(tested, metric)][RECORDED[metric]]))
            ours, theirs = values
            paper = " / ".join(cell.printed for cell in printed.get((job, metric), ())) or NOTHING
            what = (job.mix, *varied(job), METRICS[metric], str(run.seed), str(max(both)))
            yield (*what, f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}", paper)


COLUMNS = (
    *("dataset", "mix", "split", "metric", "final", "best", "paper", "seed", "commit", "table", "paper_ablation"),
    *("best_round", "rounds", "assignment", "norm", "scaler", "mask", "parameters", "seconds", "failures"),
    *("machine", "command", "note"),
)
IDENTITY = ("dataset", "mix", "split", "seed", "assignment", "norm", "scaler", "mask")
"""What tells one run that counts from another; it has a row for each of its metrics."""


def to_csv(gathered: Gathered, cells: Sequence[Cell]) -> str:
    """Return every finished run; ``note`` says why some do not count, and those have no number of the paper."""
    printed = by_job(cells)
    rows = [row for run in gathered.counted for row in _values(run, printed, "")]
    for run in gathered.different:
        rows += _values(run, {}, f"not as published: {'; '.join(run.differences)}")
    return csv_text(COLUMNS, rows)


def counted_in(path: Path) -> int:
    """Return how many runs count in a file that ``to_csv`` made; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row.get("note")]
    return len({tuple(row.get(column) for column in IDENTITY) for row in rows})


def _values(run: Run, printed: Mapping[Key, Sequence[Cell]], note: str) -> Iterator[dict[str, object]]:
    """Yield ours and theirs; Tables 7 to 9 come before the ablations, which print the same jobs with fewer digits."""
    job = run.job
    origin = {
        "dataset": job.data,
        "mix": job.mix,
        "split": job.split,
        "seed": run.seed,
        "commit": run.commit,
        "rounds": run.rounds,
        "assignment": job.assignment,
        "norm": job.norm,
        "scaler": "yes" if job.scaler else "no",
        "mask": "yes" if job.masked else "no",
        "parameters": "" if run.parameters is None else round(run.parameters, 1),
        "seconds": round(run.seconds, 1),
        "failures": run.failures,
        "machine": run.machine,
        "command": portable(run.command),
        "note": note,
    }
    for metric in run.metrics:
        score, cells = run.score(metric), printed.get((job, metric), ())
        if score is not None:
            yield {
                **origin,
                "metric": metric,
                "final": round(as_printed(metric, score.final), 4),
                "best": round(as_printed(metric, score.best), 4),
                "best_round": score.best_round,
                "paper": cells[0].printed if cells else "",
                "paper_ablation": next((cell.printed for cell in cells[1:] if cell.group == "ablations"), ""),
                "table": " ".join(cell.table for cell in cells),
            }
