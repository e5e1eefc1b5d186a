"""Reading run folders: settings, history, origin and scores of runs."""

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from heterofl_flwr import Mix, RoundRecord
from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.core.levels import LEVELS, level_name
from heterofl_flwr.data.known import short_name
from heterofl_flwr.report import ModelCosts, RunFolder
from heterofl_flwr.runs.origin import UNKNOWN
from heterofl_flwr.runs.scores import is_better, mode_of
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.renamed import from_stored
from heterofl_flwr.settings.validate import to_flat
from heterofl_flwr.settings.value_types import Flat

PROJECT = Path(__file__).resolve().parents[2]

SPLITS: Mapping[str, str] = {"iid": "iid", "non-iid-2": "noniid"}
"""Name of a split in the tables, by its setting; other splits have the setting as their name."""

FREE = (
    *("data.name", "data.root"),  # a data set has several names
    *("engine.", "run.", "seed", "sample.min-nodes", "sample.min-replies", "sample.wait"),
    *("evaluate.central", "evaluate.every", "evaluate.levels", "evaluate.metric"),
    "evaluate.nodes",  # no effect on virtual clients, which report no capacity and so evaluate the full model
)
"""Settings, or prefixes of settings, in which a run of a published job may differ from the paper."""

OF_LEVEL = "/"
"""Separator between a metric and the level whose model was evaluated, as in ``global-accuracy/e``."""

AUTHORS = "authors.csv"
"""File in a run's folder with what the authors' code reached on its job, as ``simulations.reference`` writes it."""

AUTHORS_SCORES: Mapping[str, str] = {"global": "global-accuracy", "local": "local-accuracy"}
"""Metrics in this file by column."""

PLACES = ("data.root", "run.dir", "run.resume")
"""Settings in which a collected copy differs from its run."""

_FOLDERS = re.compile(r"(?<![\w./~-])[/~][^\s'\"=,:]*/(?=[^\s'\"=,:/])")


def portable(text: str) -> str:
    """Return text with paths in the project made relative, and all other paths shortened to their final part."""
    return _FOLDERS.sub(".../", text.replace(f"{PROJECT}/", ""))


def file_name(text: str) -> str:
    """Return text that is safe in a file name."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.")


def one_line(error: Exception) -> str:
    """Return an error's message as one line."""
    return " ".join(str(error).split())


def short_mix(mix: Mix) -> str:
    """Return a mix in the paper's notation; mixes with equal shares have equal names."""
    divisor = math.gcd(*mix.counts, mix.idle)
    shares = Mix(mix.rates, tuple(count // divisor for count in mix.counts), idle=mix.idle // divisor)
    names = [level_name(rate) for rate in shares.rates]
    return "-".join(names) if {*shares.counts, 1 + mix.idle} == {1} and set(names) <= set(LEVELS) else str(shares)


def able_to_hold(mix: Mix, rate: float) -> int:
    """Return the number of a mix's parts whose clients can hold a model of this rate."""
    return sum(part >= rate for part in mix.parts if part)


Scores = Mapping[int, Mapping[str, float]]
"""Metrics by round."""


class Score(NamedTuple):
    """A metric after the final evaluation, and in the round with the best global metric."""

    final: float
    best: float  # NaN for a level that was not evaluated in the best round
    best_round: int


def chosen_round(scores: Scores, metric: str) -> int:
    """Return the best round as in the paper: by the global metric of the same kind, or else by ``metric``."""
    chooses = f"global-{metric.rpartition('-')[2]}"
    chooses = chooses if any(chooses in own for own in scores.values()) else metric
    best = min(scores)
    for number, own in sorted(scores.items()):
        best = number if is_better(own.get(chooses, math.nan), scores[best].get(chooses), mode_of(chooses)) else best
    return best


@dataclass(frozen=True, eq=False)  # compared by identity, so that results of functions can be cached by run
class Run:
    """A run, read from its folder once; other values are derived from the fields, and slow ones are cached."""

    path: Path
    settings: Settings
    about: Mapping[str, Any]
    records: Sequence[RoundRecord]
    costs: ModelCosts | None

    @cached_property
    def flat(self) -> Mapping[str, Flat]:
        """All settings, with dotted keys."""
        return to_flat(self.settings)

    @property
    def place(self) -> tuple[str, str]:
        """Short names of data and split; only runs with equal names are compared."""
        data = self.settings.data
        return short_name(data.name), SPLITS.get(data.split, data.split)

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def clients(self) -> int:
        """Number of clients among which the data are split, or else the number that the server waited for.

        The second is used for folders of earlier versions and for runs whose clients have their own data.
        """
        return int(self.about.get("clients") or self.settings.sample.min_available_nodes)

    @property
    def rounds(self) -> int:
        return self.records[-1].server_round if self.records else 0

    @property
    def complete(self) -> bool:
        """Whether all rounds were done."""
        return self.rounds == len(self.records) == self.settings.num_rounds

    @property
    def finished(self) -> bool:
        """Whether all rounds were done, or a callback ended the run early."""
        return bool(self.records) and (self.complete or bool(self.about.get("finished")))

    @property
    def started(self) -> str:
        return str(next(iter(self.about.get("starts", [])), ""))

    @property
    def commit(self) -> str:
        """Commit of the code; a run that was resumed with other code has several, joined by ``+``."""
        return " + ".join(dict.fromkeys(self.about.get("commits") or [UNKNOWN]))

    @property
    def command(self) -> str:
        return str(self.about.get("command", ""))

    @property
    def machine(self) -> str:
        return " + ".join(dict.fromkeys(self.about.get("machines") or [UNKNOWN]))

    @cached_property
    def scores(self) -> Scores:
        """Mean metrics over clients by round, without those of too few clients."""
        return {
            record.server_round: {name: record.evaluate[name] for name in record.comparable} for record in self.records
        }

    @property
    def authors(self) -> Scores:
        """Results of the authors' code on the same job by round; empty if it was not run."""
        path, names = self.path / AUTHORS, AUTHORS_SCORES.items()
        rows = rows_of(path) if path.exists() else []
        return {int(row["round"]): {name: float(row[column]) for column, name in names} for row in rows}

    @property
    def of_levels(self) -> Mapping[int, Mapping[str, Mapping[str, float]]]:
        """Metrics of each level's model by round, without rounds in which too few clients evaluated."""
        return {record.server_round: record.evaluate_by_level for record in self.records if not record.few_answered}

    def score(self, metric: str) -> Score | None:
        """Return the final and the best value of a metric; None if it was not measured.

        With ``/e`` after the name of the metric, the values are those of level e's model.

        As in the paper, the best value of every metric is that in the round with the best global metric on the test
        set. So the best local accuracy is not the maximum of local accuracies.
        """
        name, _, level = metric.partition(OF_LEVEL)
        by_level = {number: levels.get(level, {}) for number, levels in self.of_levels.items()}
        values = {number: own[name] for number, own in (by_level if level else self.scores).items() if name in own}
        if not values:
            return None
        comparable = {record.server_round: record.comparable for record in self.records}
        compared = {number: own for number, own in comparable.items() if level or name in own}
        last, best = max(values), chosen_round(compared, name)
        return Score(values[last], values.get(best, math.nan), best)

    @property
    def parameters(self) -> float | None:
        """Mean number of parameters of a client's model; None if the folder lacks the cost of a rate."""
        known = {rate: float(cost.parameters) for rate, cost in self.costs.by_rate.items()} if self.costs else {}
        mix = self.settings.mix
        return mix.mean(known) if set(mix.rates) <= set(known) else None


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, each as values by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_run(path: Path) -> Run:
    """Return the run in a folder."""
    folder = RunFolder(path)
    values = folder.settings()
    if not values:
        raise ConfigError(f"{path} does not tell its settings, so it is no run of 'heterofl run'")
    return Run(path, from_stored(values), folder.about(), tuple(folder.history()), folder.costs())


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in or below some paths, and a text for each folder that cannot be read.

    If several folders have the same run, as after ``collect``, the one with the most rounds is returned.
    """
    found: dict[tuple[str, ...], Run] = {}
    unreadable = []
    for folder in dict.fromkeys(folder for path in paths for folder in run_folders(path)):
        try:
            run = read_run(folder)
            flat = {key: portable(str(value)) for key, value in run.flat.items() if key not in PLACES}
            same = (run.started, str(run.clients), *flat.values())
            if same not in found or (run.complete, run.rounds) > (found[same].complete, found[same].rounds):
                found[same] = run
        except HeteroFLError as error:
            text = one_line(error)
            unreadable.append(text if str(folder) in text else f"{folder}: {text}")
    return list(found.values()), unreadable


def run_folders(path: Path) -> Iterator[Path]:
    """Yield the run folders in or below a path, sorted by name, without hidden folders."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder; name the folders that hold runs, such as runs/")
    for settings in sorted(path.rglob("settings.json")):
        if not any(part.startswith(".") for part in settings.relative_to(path).parts):
            yield settings.parent
