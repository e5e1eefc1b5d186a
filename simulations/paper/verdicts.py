"""Runs against printed numbers: means and intervals over seeds, differences, and how many cells are reproduced."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from simulations.paper.printed import TABLES, Cell, Job
from simulations.paper.runs import PaperRun, Score
from simulations.statistics import PERCENT, PERPLEXITY, Interval, Summary, summarise

AGREES, DIFFERS, TOO_FEW = "agrees", "differs", "too few seeds"

Key = tuple[Job, str]
"""A job and a metric of it."""


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one job, over seeds, by one metric. Accuracies are in percent."""

    job: Job
    metric: str
    runs: tuple[tuple[PaperRun, Score], ...]  # by seed
    final: Summary  # after the last round
    best: Summary  # in the round that the paper would have chosen

    @property
    def evaluations(self) -> str:
        """Among how many evaluations of a run the best one was chosen."""
        return " / ".join(map(str, sorted({len(run.scores(self.metric)) for run, _ in self.runs})))


@dataclass(frozen=True, slots=True)
class Result:
    """A printed number, and the runs of it if there are any."""

    cell: Cell
    group: Group | None

    @property
    def difference(self) -> float | None:
        """Ours less theirs; theirs are best rounds, so ours are too."""
        return None if self.group is None else self.group.best.mean - self.cell.value

    @property
    def verdict(self) -> str:
        """Whether the printed number is one that a further run of ours may well give; empty without a run.

        It is one run's best round, so it is held against the 95 % prediction interval of our best rounds, wider by
        what was rounded away in print.
        """
        if self.group is None:
            return ""
        if self.group.best.prediction is None:
            return TOO_FEW
        low, high = self.group.best.prediction
        rounded = 0.5 * 10.0 ** -len(self.cell.printed.partition(".")[2])
        return AGREES if low - rounded <= self.cell.value <= high + rounded else DIFFERS


def as_printed(metric: str, value: float) -> float:
    """Return a recorded value in the paper's unit: accuracies in percent."""
    return value if metric == "perplexity" else 100 * value


def possible(metric: str) -> Interval:
    """Return what a printed value can be."""
    return PERPLEXITY if metric == "perplexity" else PERCENT


def group_runs(runs: Iterable[PaperRun]) -> dict[Key, Group]:
    """Return runs by job and metric, with their means."""
    found: dict[Key, list[tuple[PaperRun, Score]]] = {}
    for run in runs:
        for metric in run.metrics:
            if (score := run.score(metric)) is not None:
                found.setdefault((run.job, metric), []).append((run, score))
    groups = {}
    for (job, metric), own in found.items():
        own.sort(key=lambda pair: pair[0].seed)
        final = summarise([as_printed(metric, score.final) for _, score in own], possible(metric))
        best = summarise([as_printed(metric, score.best) for _, score in own], possible(metric))
        groups[job, metric] = Group(job, metric, tuple(own), final, best)
    return groups


def by_job(cells: Iterable[Cell]) -> dict[Key, list[Cell]]:
    """Return what is printed of each job and metric, Tables 7 to 9 before the ablations."""
    found: dict[Key, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: list(TABLES).index(cell.table)):
        found.setdefault((cell.job, cell.metric), []).append(cell)
    return found


def results(cells: Iterable[Cell], groups: Mapping[Key, Group]) -> list[Result]:
    """Return every printed number with its runs."""
    return [Result(cell, groups.get((cell.job, cell.metric))) for cell in cells]


def describe_count(found: Sequence[Result]) -> str:
    """Return how many printed numbers there are, have a run, and agree with it."""
    verdicts = Counter(result.verdict for result in found)
    return (
        f"{len(found) - verdicts['']} of {len(found)} printed numbers have a run: {verdicts[AGREES]} agree, "
        f"{verdicts[DIFFERS]} differ, {verdicts[TOO_FEW]} have too few seeds to tell"
    )
