"""Run folders: which job of the paper a run is, how far it came, its scores, and whether they count."""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any
from zlib import crc32

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import ModelCosts, RunFolder
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.runs.metrics import is_better, mode_of
from heterofl_flwr.runs.origin import CHANGED, UNKNOWN
from heterofl_flwr.settings import Settings, from_flat, to_flat
from simulations.paper.printed import CLIENTS_A_ROUND, PROJECT, Job, differences, job_of
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

PLACES = ("data.root", "run.dir", "run.resume")
"""Settings in which a copy of a run differs from it."""

Scores = Mapping[int, Mapping[str, float]]
"""By round, what was measured after it."""

_FOLDERS = re.compile(r"(?<![\w./~-])[/~][^\s'\"=,:]*/(?=[^\s'\"=,:/])")


def portable(text: str, project: str = str(PROJECT)) -> str:
    """Return text in which paths within the project are relative to it, and of others only the last part is left."""
    return _FOLDERS.sub(".../", text.replace(f"{project}/", ""))


def file_name(text: str) -> str:
    """Return text as part of a name of a file."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def one_line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split())


@dataclass(frozen=True, slots=True)
class Score:
    """A metric after the last round, and in the round that the paper would have chosen."""

    final: float
    best: float
    best_round: int


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it, and what the authors' code reached on the same job where it was run."""

    path: Path
    settings: Settings
    about: Mapping[str, Any]
    records: Sequence[RoundRecord]
    costs: ModelCosts | None
    authors: Scores = field(default_factory=dict)

    @cached_property
    def job(self) -> Job:
        """The job of the paper, or one like it."""
        return job_of(self.settings)

    @cached_property
    def differences(self) -> tuple[str, ...]:
        """Where the run is not as published."""
        sizes = sorted({len(record.rates) for record in self.records} - {CLIENTS_A_ROUND})
        found = differences(self.settings)
        return (*found, *(f"clients a round {size} instead of {CLIENTS_A_ROUND}" for size in sizes))

    @cached_property
    def name(self) -> str:
        """The name of the run's folder among those of its data set; different runs have different names.

        Where more differs from the published settings than a name can hold, a checksum stands for it.
        """
        job, strategy = self.job, self.settings.server.strategy
        method = [strategy] if strategy != "heterofl" else []
        changes = [file_name(own.replace(INSTEAD, " not ")) for own in self.differences if INSTEAD in own]
        if len("_".join(changes)) > LONGEST:
            changes = [f"changed-{crc32(' '.join(changes).encode()):08x}"]
        parts = map(file_name, (job.split, job.mix, *method, job.assignment, *job.variant))
        return "_".join([*parts, *changes, f"seed-{self.seed}"])

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def rounds(self) -> int:
        return self.records[-1].server_round if self.records else 0

    @property
    def finished(self) -> bool:
        return self.rounds == len(self.records) == self.settings.num_rounds

    @property
    def started(self) -> str:
        return str(next(iter(self.about.get("starts", [])), ""))

    @property
    def commit(self) -> str:
        """The commit of the code; those of a run that was resumed with other code are joined."""
        return " + ".join(dict.fromkeys(self.about.get("commits") or [UNKNOWN]))

    @property
    def command(self) -> str:
        return str(self.about.get("command", ""))

    @property
    def machine(self) -> str:
        return " + ".join(dict.fromkeys(self.about.get("machines") or [UNKNOWN]))

    @property
    def dirty(self) -> bool:
        """Whether the code was not that of a commit, as far as is known."""
        return CHANGED in self.commit or self.commit == UNKNOWN

    @property
    def seconds(self) -> float:
        return sum(record.seconds for record in self.records)

    @property
    def failures(self) -> int:
        return sum(len(record.failures) for record in self.records)

    @property
    def parameters(self) -> float | None:
        """Mean parameters of a client, if the folder has the costs of the models."""
        known = {rate: float(cost.parameters) for rate, cost in self.costs.by_rate.items()} if self.costs else {}
        mix = self.settings.mix
        return mix.mean(known) if set(mix.rates) <= set(known) else None

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
        """Return what was measured, by round, where a metric was and on enough clients."""
        found = {own.server_round: own.comparable for own in self.records}
        return {number: own for number, own in found.items() if RECORDED[metric] in own}


def chosen_round(scores: Scores, metric: str) -> int:
    """Return the round that the authors choose for a metric: the best by the global one."""
    chooses = RECORDED["perplexity" if metric == "perplexity" else "global"]
    chooses = chooses if any(chooses in own for own in scores.values()) else RECORDED[metric]
    best = min(scores)
    for number, own in sorted(scores.items()):
        best = number if is_better(own.get(chooses, math.nan), scores[best].get(chooses), mode_of(chooses)) else best
    return best


def read_run(path: Path) -> Run:
    """Return the run in a folder."""
    folder = RunFolder(path)
    values = folder.settings()
    if not values:
        raise ConfigError(f"{path} does not tell its settings, so it is no run of 'heterofl run'")
    history = tuple(folder.history())
    return Run(path, from_flat(values), folder.about(), history, folder.costs(), authors=read_authors(path))


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

    counted: tuple[Run, ...] = ()  # finished, as published, and the only one of its job and seed
    different: tuple[Run, ...] = ()  # finished, but not as published
    unfinished: tuple[Run, ...] = ()
    repeated: tuple[Run, ...] = ()  # further runs of a job and seed: a later one counts in their place
    unreadable: tuple[str, ...] = ()  # what is wrong with folders that cannot be read, a line each


def gather(paths: Sequence[Path]) -> Gathered:
    """Read every run folder in or below some paths; copies of one run are one."""
    runs, unreadable = read_runs(paths)
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


def _same_job(run: Run) -> tuple[object, ...]:
    return (*astuple(run.job), run.seed)


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in or below some paths, and what is wrong with other folders.

    Of several folders that hold the same run, as after ``collect``, the one that came furthest is returned.
    """
    found: dict[tuple[str, ...], Run] = {}
    unreadable = []
    for folder in dict.fromkeys(folder for path in paths for folder in run_folders(path)):
        try:
            run = read_run(folder)
            flat = {key: portable(str(value)) for key, value in to_flat(run.settings).items() if key not in PLACES}
            same = (run.started, run.job.data, *flat.values())
            if same not in found or (run.finished, run.rounds) > (found[same].finished, found[same].rounds):
                found[same] = run
        except HeteroFLError as error:
            text = one_line(error)
            unreadable.append(text if str(folder) in text else f"{folder}: {text}")
    return list(found.values()), unreadable


def run_folders(path: Path) -> Iterator[Path]:
    """Yield the run folders in or below a path, in the order of their names; hidden folders are left out."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder; name the folders that hold runs, such as runs/")
    for settings in sorted(path.rglob("settings.json")):
        if not any(part.startswith(".") for part in settings.relative_to(path).parts):
            yield settings.parent
