"""A run folder, read: what the run is, how far it came, and its scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import ModelCosts, RunFolder
from heterofl_flwr.runs.metrics import is_better, mode_of
from heterofl_flwr.runs.origin import CHANGED, UNKNOWN
from heterofl_flwr.settings import Settings, from_flat
from simulations.published.authors import Scores, read_authors
from simulations.published.jobs import CLIENTS_A_ROUND, Job, differences, job_of
from simulations.published.portable import file_name

RECORDED = {
    "accuracy": "global-accuracy",
    "local": "local-accuracy",
    "global": "global-accuracy",
    "perplexity": "global-perplexity",
}
"""From a metric of the tables to its name in a record."""

INSTEAD = " instead of "
LONGEST = 150
"""Letters of a folder's name; file systems take 255 bytes."""


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
        """A name for the run's folder among those of its data set; runs that are to differ have different ones."""
        job = self.job
        changes = [own.replace(INSTEAD, " not ") for own in self.differences if INSTEAD in own]
        parts = [job.split, job.mix, job.assignment, *job.variant, *changes, f"seed {self.seed}"]
        name = "_".join(file_name(part) for part in parts)
        return name if len(name) <= LONGEST else f"{name[:LONGEST]}-{crc32(name.encode()):08x}"

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.settings.seed

    @property
    def rounds(self) -> int:
        """Rounds done."""
        return self.records[-1].server_round if self.records else 0

    @property
    def finished(self) -> bool:
        """Whether all rounds were done."""
        return self.rounds == len(self.records) == self.settings.num_rounds

    @property
    def started(self) -> str:
        """When the run was first started."""
        return str(next(iter(self.about.get("starts", [])), ""))

    @property
    def commit(self) -> str:
        """The commit of the code; those of a run that went on with other code are joined."""
        return _joined(self.about.get("commits"))

    @property
    def command(self) -> str:
        """The command that started the run."""
        return str(self.about.get("command", ""))

    @property
    def machine(self) -> str:
        """What the run was made on."""
        return _joined(self.about.get("machines"))

    @property
    def dirty(self) -> bool:
        """Whether the code was not that of a commit, as far as is known."""
        return CHANGED in self.commit or self.commit == UNKNOWN

    @property
    def seconds(self) -> float:
        """Time of all rounds."""
        return sum(record.seconds for record in self.records)

    @property
    def failures(self) -> int:
        """How many times a client failed."""
        return sum(len(record.failures) for record in self.records)

    @property
    def parameters(self) -> float | None:
        """Mean parameters of a client, if the folder tells what the models cost."""
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
    return Run(
        path, from_flat(values), folder.about(), tuple(folder.history()), folder.costs(), authors=read_authors(path)
    )


def _joined(values: Sequence[str] | None) -> str:
    return " + ".join(dict.fromkeys(values)) if values else UNKNOWN
