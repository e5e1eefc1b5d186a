"""What the runs amount to: a table for each of the paper's, and lists of what differs, does not count or is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from heterofl_flwr.core.formatting import NOTHING
from simulations.published.cells import TABLES, Cell
from simulations.published.formats import Table
from simulations.published.gathering import Gathered
from simulations.published.jobs import DATA, Job
from simulations.published.portable import portable
from simulations.published.runs import Run
from simulations.published.statistics import Interval, Summary
from simulations.published.tally import DIFFERS, Group, Key, Result, by_job

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
    return Table(f"tab:{_word(title)}", title, header, rows)


def _runs(title: str, runs: Iterable[Run], why: Callable[[Run], str]) -> Table:
    rows = tuple((run.path.name, run.job.data, run.name, why(run)) for run in runs)
    return Table(f"tab:{_word(title)}", title, ("folder", "data", "run", "why"), rows)


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


def _word(title: str) -> str:
    return title.partition(":")[0].lower().replace(" ", "-")
