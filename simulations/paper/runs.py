"""Runs as jobs of the paper: which job one is, its scores, whether it counts, and the authors' scores beside it."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from zlib import crc32

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.runs.metrics import is_better, mode_of
from heterofl_flwr.settings import CLIENTS
from simulations.paper.printed import CLIENTS_A_ROUND, Job, differences, job_of
from simulations.results.runs import Run, file_name, method_of, read_run, read_runs
from simulations.tables import to_csv

RECORDED = {
    "accuracy": "global-accuracy",
    "local": "local-accuracy",
    "global": "global-accuracy",
    "perplexity": "global-perplexity",
}
"""From a metric of the tables to its name in a record."""

AUTHORS_FILE = "authors.csv"
"""What the authors' code reached on the job of a run, beside the run's history."""

AUTHORS_SCORES = {"global": "global-accuracy", "local": "local-accuracy"}
AUTHORS_COLUMNS = ("round", *AUTHORS_SCORES, "seconds", "seed", "commit", "authors", "machine", "command")
INSTEAD = " instead of "
LONGEST = 80  # characters of a folder's name that say what differs from the published settings

Scores = Mapping[int, Mapping[str, float]]
"""By round, what was measured after it."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric after the last round, and in the round that the paper would have chosen."""

    final: float
    best: float
    best_round: int


@dataclass(frozen=True)
class PaperRun(Run):
    """A run as one of the paper's jobs, and what the authors' code reached on the same job where it was run."""

    authors: Scores = field(default_factory=dict)

    @cached_property
    def job(self) -> Job:
        """The job of the paper, or one like it."""
        return job_of(self.settings)

    @cached_property
    def differences(self) -> tuple[str, ...]:
        """Where the run is not as published."""
        sizes = sorted({len(record.rates) for record in self.records} - {CLIENTS_A_ROUND})
        found, published = differences(self.settings), CLIENTS.get(self.job.data, 100)
        if self.clients != published:
            found = (*found, f"clients {self.clients}{INSTEAD}{published}")
        return (*found, *(f"clients a round {size} instead of {CLIENTS_A_ROUND}" for size in sizes))

    @cached_property
    def name(self) -> str:
        """The name of the run's folder among those of its data set; different runs have different names.

        Where more differs from the published settings than a name can hold, a checksum stands for it.
        """
        job, method = self.job, method_of(self.settings)
        changes = [file_name(own.replace(INSTEAD, " not ")) for own in self.differences if INSTEAD in own]
        if len("_".join(changes)) > LONGEST:
            changes = [f"changed-{crc32(' '.join(changes).encode()):08x}"]
        words = (job.split, job.mix, "" if method == "HeteroFL" else method.lower(), job.assignment, *job.variant)
        return "_".join([*map(file_name, filter(None, words)), *changes, f"seed-{self.seed}"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics under which the paper would print the run."""
        if any(RECORDED["perplexity"] in record.evaluate for record in self.records):
            return ("perplexity",)
        return ("accuracy",) if self.job.split == "iid" else ("local", "global")

    def score(self, metric: str) -> Score | None:
        """Return a metric's final value, and its value in the best round.

        The authors keep the state of the round whose global metric is best on the test set, and print every metric of
        that state. So local accuracy is that round's too, not the best of its own.
        """
        scores = self.scores(metric)
        if not scores:
            return None
        best = chosen_round(scores, metric)
        return Score(scores[max(scores)][RECORDED[metric]], scores[best][RECORDED[metric]], best)

    def scores(self, metric: str) -> Scores:
        """Return what was measured, by round, where a metric was and on enough clients; means over clients."""
        found = {own.server_round: {name: own.evaluate[name] for name in own.comparable} for own in self.records}
        return {number: own for number, own in found.items() if RECORDED[metric] in own}


def chosen_round(scores: Scores, metric: str) -> int:
    """Return the round that the authors choose for a metric: the best by the global one."""
    chooses = RECORDED["perplexity" if metric == "perplexity" else "global"]
    chooses = chooses if any(chooses in own for own in scores.values()) else RECORDED[metric]
    best = min(scores)
    for number, own in sorted(scores.items()):
        best = number if is_better(own.get(chooses, math.nan), scores[best].get(chooses), mode_of(chooses)) else best
    return best


def read_paper_run(path: Path) -> PaperRun:
    """Return the run in a folder, with what the authors' code reached on its job."""
    return PaperRun(**vars(read_run(path)), authors=read_authors(path))


def write_authors(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write what the authors' code reached into a run folder, whole or not at all."""
    write_atomic(folder / AUTHORS_FILE, to_csv(AUTHORS_COLUMNS, rows).encode())


def read_authors(folder: Path) -> Scores:
    """Return what the authors' code reached; nothing where it was not run."""
    path = folder / AUTHORS_FILE
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                int(row["round"]): {name: float(row[column]) for column, name in AUTHORS_SCORES.items()}
                for row in csv.DictReader(file)
            }
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not as expected ({error}): rows with the columns {', '.join(AUTHORS_COLUMNS)}; remove it and "
            "let python -m simulations.reference write it again"
        ) from error


@dataclass(frozen=True, slots=True)
class Gathered:
    """All runs of some folders, sorted by whether they count."""

    counted: tuple[PaperRun, ...] = ()  # finished, as published, and the only one of its job and seed
    different: tuple[PaperRun, ...] = ()  # finished, but not as published
    unfinished: tuple[PaperRun, ...] = ()
    repeated: tuple[PaperRun, ...] = ()  # further runs of a job and seed: a later one counts in their place
    unreadable: tuple[str, ...] = ()  # what is wrong with folders that cannot be read, a line each


def gather(paths: Sequence[Path]) -> Gathered:
    """Read every run folder in or below some paths; copies of one run are one."""
    runs, unreadable = read_runs(paths, read_paper_run)
    finished = [run for run in runs if run.finished]
    published = sorted((run for run in finished if not run.differences), key=_same_job)
    latest = [max(same, key=lambda run: run.started) for _, same in groupby(published, key=_same_job)]
    return Gathered(
        counted=tuple(latest),
        different=tuple(run for run in finished if run.differences),
        unfinished=tuple(run for run in runs if not run.finished),
        repeated=tuple(run for run in published if run not in latest),
        unreadable=tuple(unreadable),
    )


def _same_job(run: PaperRun) -> tuple[object, ...]:
    return (*astuple(run.job), run.seed)
