"""Tables as Markdown and as LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from heterofl_flwr.core.formatting import NOTHING, render
from simulations.paper.printed import DATA, TABLES, Cell, Job
from simulations.paper.runs import RECORDED, Gathered, Run, Score, chosen_round, portable
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
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes
    ----------
    label, title
        A name without blanks, and a title.
    header, rows
        The cells; every row is as long as the header.
    note
        A sentence below it, or nothing.
    """

    label: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def to_markdown(table: Table) -> str:
    """Return a section with the table."""
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in table.rows]
    parts = [f"## {table.title}", *([render(table.header, rows, "markdown")] if rows else []), table.note]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_latex(table: Table) -> str:
    """Return a ``table`` that needs no package."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(' '.join(filter(None, [f'{table.title}.', table.note])))}}}",
            rf"\label{{{table.label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\hline",
            _latex_row(table.header),
            r"\hline",
            *map(_latex_row, table.rows),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Return text as LaTeX prints it."""
    return _SPECIAL.sub(lambda match: _LATEX[match[0]], text)


def _latex_row(cells: Sequence[str]) -> str:
    # A bracket after the end of a row would be taken for its optional argument, so every row begins with braces.
    return f"{{}}{' & '.join(map(escape, cells))} \\\\"


OURS = ("metric", "seeds", "final", "best")
THEIRS = ("one run, 95 %", "paper", "difference", "verdict")
VARIED = ("norm", "Scaler", "mask")
METRICS = {"accuracy": "accuracy, IID", "local": "local, non-IID", "global": "global, non-IID"}


def paper_tables(found: Sequence[Result]) -> list[Table]:
    """Return the rows of Tables 7 to 9, 4 and 5 that have a run."""
    tables = []
    for number, title in TABLES.items():
        own = [result for result in found if result.cell.table == number]
        run = [result for result in own if result.group]
        if run:
            note = f"{len(run)} of {len(own)} numbers have a run."
            tables.append(_paper_table(number, title, run, note))
    return tables


def further_tables(groups: Mapping[Key, Group], cells: Iterable[Cell]) -> list[Table]:
    """Return the jobs that no table prints, a table for each data set: those of the figures, or all without the paper.

    Parameters
    ----------
    groups : Mapping[Key, Group]
        The runs that count.
    cells : Iterable[Cell]
        What the paper prints; nothing where its numbers are not at hand.
    """
    printed = by_job(cells)
    beside = "beside the tables" if printed else "without the paper's numbers"
    tables = []
    for data in DATA:
        own = [group for key, group in groups.items() if group.job.data == data and key not in printed]
        header = ("model", "assignment", *VARIED, *OURS)
        rows = tuple((group.job.mix, group.job.assignment, *varied(group.job), *_ours(group)) for group in own)
        if rows:
            tables.append(Table(f"tab:{data}", f"{_title(data)}, {beside}", header, rows))
    return tables


def lists(gathered: Gathered, found: Sequence[Result]) -> list[Table]:
    """Return the lists that go with the tables: numbers that differ, runs that do not count, numbers without a run."""
    unreadable = tuple((portable(line),) for line in gathered.unreadable)
    made = [
        _differing("Printed numbers that differ", [result for result in found if result.verdict == DIFFERS]),
        _runs("Unfinished", gathered.unfinished, lambda run: f"{run.rounds} of {run.settings.num_rounds} rounds"),
        _runs("Not as published", gathered.different, lambda run: "; ".join(run.differences)),
        _runs("Set aside: a later run has the same job and seed", gathered.repeated, lambda run: run.started),
        Table("tab:unreadable", "Unreadable", ("what is wrong",), unreadable),
        _without_run([result for result in found if not result.group]),
    ]
    return [table for table in made if table.rows]


def number(summary: Summary, digits: int = 2) -> str:
    """Return a mean with its standard deviation and interval, as far as there are enough values for them."""
    text = f"{summary.mean:.{digits}f}"
    if summary.deviation is not None:
        text += f" ± {summary.deviation:.{digits}f}"
    return f"{text} {shown(summary.interval, digits)}" if summary.interval else text


def shown(interval: Interval | None, digits: int = 2) -> str:
    """Return an interval as text."""
    return f"[{', '.join(f'{end:.{digits}f}' for end in interval)}]" if interval else NOTHING


def _paper_table(table: str, title: str, run: Sequence[Result], note: str) -> Table:
    ablation = table in "45"
    header = ("model", *(("data", *VARIED) if ablation else ()), *OURS, *THEIRS)
    rows = tuple(_row(result, result.group, ablation=ablation) for result in run if result.group)
    return Table(f"tab:{table}", f"Table {table}: {title}", header, rows, note)


def _row(result: Result, group: Group, *, ablation: bool) -> tuple[str, ...]:
    difference = NOTHING if result.difference is None else f"{result.difference:+.2f}"
    theirs = (shown(group.best.prediction), result.cell.printed, difference, result.verdict)
    variant = (group.job.data, *varied(group.job)) if ablation else ()
    return (group.job.mix, *variant, *_ours(group), *theirs)


def _ours(group: Group) -> tuple[str, ...]:
    seeds = ", ".join(str(run.seed) for run, _ in group.runs)
    return (METRICS.get(group.metric, group.metric), seeds, number(group.final), number(group.best))


def varied(job: Job) -> tuple[str, str, str]:
    scaler = ("yes" if job.scaler else "no") if "-" in job.mix else NOTHING
    return job.norm, scaler, "yes" if job.masked else "no"


def _differing(title: str, found: Sequence[Result]) -> Table:
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
    return Table(f"tab:{_slug(title)}", title, header, rows)


def _runs(title: str, runs: Iterable[Run], why: Callable[[Run], str]) -> Table:
    rows = tuple((run.path.name, run.job.data, run.name, why(run)) for run in runs)
    return Table(f"tab:{_slug(title)}", title, ("folder", "data", "run", "why"), rows)


def _without_run(found: Sequence[Result]) -> Table:
    """Return what is missing, a row for each metric of a data set in a table."""
    missing: dict[tuple[str, str, str], list[str]] = {}
    for cell in (result.cell for result in found):
        missing.setdefault((cell.table, cell.job.data, cell.metric), []).append(_model(cell))
    rows = tuple(
        (f"Table {table}", data, METRICS.get(metric, metric), str(len(names)), ", ".join(names))
        for (table, data, metric), names in missing.items()
    )
    return Table("tab:missing", "Printed numbers without a run", ("table", "data", "metric", "number", "models"), rows)


def _model(cell: Cell) -> str:
    variant = ", ".join(cell.job.variant)
    return f"{cell.job.mix} ({variant})" if variant else cell.job.mix


def _title(data: str) -> str:
    return dict(zip(DATA, TABLES.values(), strict=False))[data]


def _slug(title: str) -> str:
    return title.partition(":")[0].lower().replace(" ", "-")


BY = "run by python -m simulations.reference; authors.csv beside a run's history says more"


def authors_tables(groups: Mapping[Key, Group], cells: Iterable[Cell]) -> list[Table]:
    """Return the jobs that the authors' code did too: whole curves over seeds, then seed by seed; none without any."""
    own = [group for group in groups.values() if any(run.authors for run, _ in group.runs)]
    return [table for table in (_curves(own), _seeds(own, by_job(cells))) if table.rows]


def _curves(groups: Sequence[Group]) -> Table:
    """Return, for each half of the training, the mean over the rounds that all runs of both sides tested."""
    rows = tuple(row for group in groups for row in _halves(group))
    header = ("model", *VARIED, "metric", "seeds", "rounds", "ours", "the authors' code", "difference")
    note = (
        f"Their code on the same data, {BY}. Each seed's value is its mean over all rounds that every run of both "
        "sides tested; then mean ± standard deviation over seeds, and the 95 % interval of the difference by Welch."
    )
    return Table("tab:curves", "MNIST, beside the authors' code: all rounds", header, rows, note)


def _halves(group: Group) -> list[tuple[str, ...]]:
    ours = [run.scores(group.metric) for run, _ in group.runs]
    theirs = [run.authors for run, _ in group.runs if run.authors]
    shared = sorted(set.intersection(*(set(own) for own in (*ours, *theirs))))
    seeds = f"{len(ours)}, theirs {len(theirs)}"
    rows: list[tuple[str, ...]] = []
    for half in (shared[: len(shared) // 2], shared[len(shared) // 2 :]):
        if half:
            sides = [
                summarise(
                    [as_printed(group.metric, fmean(own[one][RECORDED[group.metric]] for one in half)) for own in side]
                )
                for side in (ours, theirs)
            ]
            rounds = f"{half[0]} to {half[-1]}"
            shown = (_spread(sides[0]), _spread(sides[1]), _difference(*sides))
            rows.append((group.job.mix, *varied(group.job), METRICS[group.metric], seeds, rounds, *shown))
    return rows


def _seeds(groups: Sequence[Group], printed: Mapping[Key, Sequence[Cell]]) -> Table:
    """Return both sides' best round seed by seed, chosen among those that both tested."""
    rows = tuple(
        _beside(run, group.metric, both, printed.get((run.job, group.metric), ()))
        for group in groups
        for run, _ in group.runs
        if (both := run.scores(group.metric).keys() & run.authors.keys())
    )
    header = ("model", *VARIED, "metric", "seed", "rounds", "ours", "the authors' code", "difference", "paper")
    note = f"Their code, {BY}. Both are the best of the rounds that both tested; rounds: the last of them."
    return Table("tab:authors", "MNIST, beside the authors' code: best rounds", header, rows, note)


def _beside(run: Run, metric: str, both: Set[int], printed: Sequence[Cell]) -> tuple[str, ...]:
    values = []
    for scores in (run.scores(metric), run.authors):
        tested = {number: scores[number] for number in both}
        values.append(as_printed(metric, tested[chosen_round(tested, metric)][RECORDED[metric]]))
    ours, theirs = values
    shown = (
        f"{ours:.2f}",
        f"{theirs:.2f}",
        f"{ours - theirs:+.2f}",
        " / ".join(cell.printed for cell in printed) or NOTHING,
    )
    return (run.job.mix, *varied(run.job), METRICS[metric], str(run.seed), str(max(both)), *shown)


def _spread(summary: Summary) -> str:
    return f"{summary.mean:.2f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.2f}")


def _difference(ours: Summary, theirs: Summary) -> str:
    half_width = half_width_of_difference(ours, theirs)
    difference = ours.mean - theirs.mean
    if half_width is None:
        return f"{difference:+.2f}"
    return f"{difference:+.2f} [{difference - half_width:+.2f}, {difference + half_width:+.2f}]"


COLUMNS = (
    "dataset",
    "mix",
    "split",
    "metric",
    "final",
    "best",
    "paper",
    "seed",
    "commit",
    "table",
    "paper_ablation",
    "best_round",
    "rounds",
    "assignment",
    "norm",
    "scaler",
    "mask",
    "parameters",
    "seconds",
    "failures",
    "machine",
    "command",
    "note",
)
IDENTITY = ("dataset", "mix", "split", "seed", "assignment", "norm", "scaler", "mask")
"""What tells one run that counts from another; it has a row for each of its metrics."""

DIGITS = 4


def to_csv(gathered: Gathered, cells: Sequence[Cell]) -> str:
    """Return every finished run; ``note`` says why some do not count, and those have no number of the paper."""
    printed = by_job(cells)
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in gathered.counted:
        writer.writerows(_rows(run, printed, ""))
    for run in gathered.different:
        writer.writerows(_rows(run, {}, f"not as published: {'; '.join(run.differences)}"))
    return file.getvalue()


def counted_in(path: Path) -> int:
    """Return how many runs count in a file that ``to_csv`` made; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row.get("note")]
    return len({tuple(row.get(column) for column in IDENTITY) for row in rows})


def _rows(run: Run, printed: Mapping[Key, Sequence[Cell]], note: str) -> Iterator[dict[str, object]]:
    for metric in run.metrics:
        score = run.score(metric)
        if score is not None:
            yield {**_origin(run), **_numbers(metric, score, printed.get((run.job, metric), ())), "note": note}


def _numbers(metric: str, score: Score, cells: Sequence[Cell]) -> dict[str, object]:
    """Return ours and theirs; Tables 7 to 9 come before the ablations, which print the same jobs with fewer digits."""
    return {
        "metric": metric,
        "final": round(as_printed(metric, score.final), DIGITS),
        "best": round(as_printed(metric, score.best), DIGITS),
        "best_round": score.best_round,
        "paper": cells[0].printed if cells else "",
        "paper_ablation": next((cell.printed for cell in cells[1:] if cell.group == "ablations"), ""),
        "table": " ".join(cell.table for cell in cells),
    }


def _origin(run: Run) -> dict[str, object]:
    job = run.job
    return {
        "dataset": job.data,
        "mix": job.mix,
        "split": job.split,
        "seed": run.seed,
        "commit": run.commit,
        "rounds": run.rounds,
        "assignment": job.assignment,
        "norm": job.norm,
        "scaler": _yes_no(job.scaler),
        "mask": _yes_no(job.masked),
        "parameters": "" if run.parameters is None else round(run.parameters, 1),
        "seconds": round(run.seconds, 1),
        "failures": run.failures,
        "machine": run.machine,
        "command": portable(run.command),
    }


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
