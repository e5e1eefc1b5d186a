"""Runs against printed numbers: means over seeds, differences, and how many cells are reproduced."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from simulations.published.cells import TABLES, Cell
from simulations.published.jobs import Job
from simulations.published.runs import Run, Score
from simulations.published.statistics import Summary, summarise

TOLERANCES: Mapping[tuple[str, str], float] = MappingProxyType(
    {
        ("mnist", "accuracy"): 0.07,
        ("cifar10", "accuracy"): 0.5,
        ("mnist", "local"): 0.7,
        ("cifar10", "local"): 0.7,
        ("mnist", "global"): 2.3,
        ("cifar10", "global"): 2.3,
    }
)
"""By how many points the paper's own repeats of a job differ (Tables 4 and 5 against 7 and 8). It repeats no job of
WikiText2, so nothing says how near is near there."""

WITHIN = "yes"
OUTSIDE = "no"
NOT_JUDGED = "not judged"

ROUNDING = 1e-9

Key = tuple[Job, str]
"""A job and a metric of it."""


@dataclass(frozen=True, slots=True)
class Group:
    """The runs of one job, over seeds, by one metric. Accuracies are in percent.

    Attributes
    ----------
    job, metric
        Of what.
    runs
        The runs and their scores, by seed.
    final, best
        Means over the runs: after the last round, and in the round that the paper would have chosen.
    """

    job: Job
    metric: str
    runs: tuple[tuple[Run, Score], ...]
    final: Summary
    best: Summary


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
        """Whether ours is as near as the paper's own repeats are; empty without a run."""
        tolerance = TOLERANCES.get((self.cell.job.data, self.cell.metric))
        if self.difference is None:
            return ""
        if tolerance is None:
            return NOT_JUDGED
        return WITHIN if abs(self.difference) <= tolerance + ROUNDING else OUTSIDE


@dataclass(frozen=True, slots=True)
class Count:
    """How many printed numbers there are, have a run, and are reproduced."""

    printed: int
    run: int
    within: int
    outside: int
    not_judged: int

    def __str__(self) -> str:
        """Return the count as a sentence without its end."""
        text = f"{self.run} of {self.printed} printed numbers have a run, {self.within} within the tolerance"
        return f"{text}, {self.outside} outside, {self.not_judged} not judged"


def as_printed(metric: str, value: float) -> float:
    """Return a recorded value in the paper's unit: accuracies in percent."""
    return value if metric == "perplexity" else 100 * value


def group_runs(runs: Iterable[Run]) -> dict[Key, Group]:
    """Return runs by job and metric, with their means."""
    found: dict[Key, list[tuple[Run, Score]]] = {}
    for run in runs:
        for metric in run.metrics:
            score = run.score(metric)
            if score is not None:
                found.setdefault((run.job, metric), []).append((run, score))
    return {key: _group(*key, sorted(own, key=lambda pair: pair[0].seed)) for key, own in found.items()}


def by_job(cells: Iterable[Cell]) -> dict[Key, list[Cell]]:
    """Return what is printed of each job and metric, Tables 7 to 9 before the ablations."""
    found: dict[Key, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: list(TABLES).index(cell.table)):
        found.setdefault((cell.job, cell.metric), []).append(cell)
    return found


def results(cells: Iterable[Cell], groups: Mapping[Key, Group]) -> list[Result]:
    """Return every printed number with its runs."""
    return [Result(cell, groups.get((cell.job, cell.metric))) for cell in cells]


def count(found: Sequence[Result]) -> Count:
    """Count results by their verdict."""
    verdicts = [result.verdict for result in found]
    judged = (verdicts.count(verdict) for verdict in (WITHIN, OUTSIDE, NOT_JUDGED))
    return Count(len(verdicts), len(verdicts) - verdicts.count(""), *judged)


def _group(job: Job, metric: str, runs: Sequence[tuple[Run, Score]]) -> Group:
    final = summarise([as_printed(metric, score.final) for _, score in runs])
    best = summarise([as_printed(metric, score.best) for _, score in runs])
    return Group(job, metric, tuple(runs), final, best)
