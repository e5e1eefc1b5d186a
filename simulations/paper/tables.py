"""The tables that set runs beside the paper and beside the authors' code: for pages, and as values."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from statistics import fmean

from heterofl_flwr.core.formatting import NOTHING
from simulations.paper.printed import DATA, TABLES, Cell, Job
from simulations.paper.runs import RECORDED, Gathered, PaperRun, Scores, chosen_round
from simulations.paper.verdicts import Group, Key, Result, as_printed, by_job
from simulations.results.runs import portable
from simulations.statistics import contrast, summarise
from simulations.tables import Table, show_contrast, show_interval, show_spread, show_summary, to_csv

OURS = ("metric", "seeds", "final", "best", "best of")
THEIRS = ("one run, 95 %", "paper", "difference", "verdict")
VARIED = ("norm", "Scaler", "mask")
METRICS = {"accuracy": "accuracy, IID", "local": "local, non-IID", "global": "global, non-IID"}


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
    theirs = (show_interval(group.best.prediction), result.cell.printed, difference, result.verdict)
    variant = (group.job.data, *varied(group.job)) if ablation else ()
    return (group.job.mix, *variant, *_ours(group), *theirs)


def _ours(group: Group) -> tuple[str, ...]:
    seeds = ", ".join(str(run.seed) for run, _ in group.runs)
    ours = (show_summary(group.final), show_summary(group.best), group.evaluations)
    return (METRICS.get(group.metric, group.metric), seeds, *ours)


def varied(job: Job) -> tuple[str, str, str]:
    """Return norm, Scaler and mask of a job."""
    scaler = ("yes" if job.scaler else "no") if "-" in job.mix else NOTHING
    return job.norm, scaler, "yes" if job.masked else "no"


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
    """Return the lists that go with the tables: runs that do not count, numbers without a run."""
    unreadable = tuple((portable(line),) for line in gathered.unreadable)
    made = [
        _runs("Unfinished", gathered.unfinished, lambda run: f"{run.rounds} of {run.settings.num_rounds} rounds"),
        _runs("Not as published", gathered.different, lambda run: "; ".join(run.differences)),
        _runs("Set aside: a later run has the same job and seed", gathered.repeated, lambda run: run.started),
        Table("tab:unreadable", "Unreadable", ("what is wrong",), unreadable),
        _without_run([result.cell for result in found if not result.group]),
    ]
    return [table for table in made if table.rows]


def _runs(title: str, runs: Iterable[PaperRun], why: Callable[[PaperRun], str]) -> Table:
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


def authors_table(groups: Mapping[Key, Group]) -> Table:
    """Return the jobs that the authors' code did too: whole curves over seeds, and the best rounds."""
    own = [group for group in groups.values() if any(run.authors for run, _ in group.runs)]
    return Table(
        "tab:authors",
        "MNIST, beside the authors' code",
        ("model", *VARIED, "metric", "seeds", "rounds", "ours", "the authors' code", "difference"),
        tuple(row for group in own for row in _beside_authors(group)),
        "Their code on the same data, run by python -m simulations.reference; authors.csv beside a run's history says "
        "more. Each seed's value is its mean over all rounds that every run of both sides tested, or the best of "
        "these; then mean ± standard deviation over seeds, and with three seeds on both sides the 95 % interval of the "
        "difference by Welch.",
    )


def _beside_authors(group: Group) -> Iterator[tuple[str, ...]]:
    """Yield both sides' means over each half of the rounds that all runs tested, and their best of these rounds."""
    metric, name = group.metric, RECORDED[group.metric]
    ours = [run.scores(metric) for run, _ in group.runs]
    theirs = [run.authors for run, _ in group.runs if run.authors]
    shared = sorted(set.intersection(*(set(own) for own in (*ours, *theirs))))

    def best(scores: Scores) -> float:
        tested = {number: scores[number] for number in shared}
        return tested[chosen_round(tested, metric)][name]

    def mean_of(rounds: Sequence[int]) -> Callable[[Scores], float]:
        return lambda scores: fmean(scores[number][name] for number in rounds)

    halves = filter(None, (shared[: len(shared) // 2], shared[len(shared) // 2 :]))
    values = {f"{half[0]} to {half[-1]}": mean_of(half) for half in halves}
    what = (group.job.mix, *varied(group.job), METRICS[metric], f"{len(ours)}, theirs {len(theirs)}")
    for rounds, value in (values | {f"best of {len(shared)}": best} if shared else {}).items():
        one, two = (summarise([as_printed(metric, value(own)) for own in side]) for side in (ours, theirs))
        yield (*what, rounds, show_spread(one), show_spread(two), show_contrast(*contrast([(1, one), (-1, two)])))


COLUMNS = (
    *("dataset", "mix", "split", "metric", "final", "best", "paper", "seed", "commit", "table", "paper_ablation"),
    *("best_round", "rounds", "assignment", "norm", "scaler", "mask", "parameters", "seconds", "failures"),
    *("machine", "command", "note"),
)


def runs_csv(gathered: Gathered, cells: Sequence[Cell]) -> str:
    """Return every finished run; ``note`` says why some do not count, and those have no number of the paper."""
    printed = by_job(cells)
    rows = [row for run in gathered.counted for row in _values(run, printed, "")]
    for run in gathered.different:
        rows += _values(run, {}, f"not as published: {'; '.join(run.differences)}")
    return to_csv(COLUMNS, rows)


def _values(run: PaperRun, printed: Mapping[Key, Sequence[Cell]], note: str) -> Iterator[dict[str, object]]:
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
