"""Our runs beside what the authors' own code reached on the same jobs and data."""

from collections.abc import Iterable, Mapping, Sequence, Set
from statistics import fmean

from heterofl_flwr.core.formatting import NOTHING
from simulations.published.cells import Cell
from simulations.published.formats import Table
from simulations.published.runs import RECORDED, Run, chosen_round
from simulations.published.statistics import Summary, half_width_of_difference, summarise
from simulations.published.tables import METRICS, VARIED, varied
from simulations.published.tally import Group, Key, as_printed, by_job

BY = "run by python -m simulations.arbiter; authors.csv beside a run's history says more"


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
