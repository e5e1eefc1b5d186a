"""The paper's jobs and printed numbers: the job of a run, its departures from the paper, and verdicts on numbers."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from zlib import crc32

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.data.known import short_name
from heterofl_flwr.settings.auto_values import CLIENTS, preset
from heterofl_flwr.settings.definitions import Settings
from heterofl_flwr.settings.method_name import method_name
from heterofl_flwr.settings.validate import from_flat, to_flat
from heterofl_flwr.settings.value_types import Flat
from simulations.results.runs import FREE, PROJECT, SPLITS, Run, file_name, rows_of, short_mix
from simulations.results.statistics import Summary

DATA = ("mnist", "cifar10", "wikitext2")
AGREES, DIFFERS, TOO_FEW = "agrees", "differs", "too few seeds"
CLIENTS_A_ROUND = 10
INSTEAD = " instead of "
LONGEST = 80  # characters of differences from the published settings in a folder's name


@dataclass(frozen=True, slots=True)
class Job:
    """Identity of a job of the paper.

    Fields without effect have a canonical value: with a single level, the job is ``fix`` and has the Scaler.
    """

    data: str  # the short name
    split: str  # iid, noniid, or the setting of another split
    mix: str  # as in the paper if the shares are equal (a-e), else with shares (a1-e9)
    assignment: str = "dynamic"
    norm: str = "sbn"
    scaler: bool = True
    masked: bool = True

    def __post_init__(self) -> None:
        if "-" not in self.mix:
            object.__setattr__(self, "assignment", "fix")
            object.__setattr__(self, "scaler", True)

    @property
    def variant(self) -> tuple[str, ...]:
        """Differences from the paper's model for the data set, as texts."""
        norm = () if self.norm == usual_norm(self.data) else (f"norm {self.norm}",)
        return (*norm, *(() if self.scaler else ("no Scaler",)), *(() if self.masked else ("no mask",)))

    def repeats_global(self, metric: str) -> bool:
        """Whether a metric is the global one on parts of the test set, because each client has all classes."""
        return self.split == "iid" and metric.startswith("local")

    def __str__(self) -> str:
        """Return the mix, with the assignment of its levels and the variant."""
        words = [*((self.assignment,) if "-" in self.mix else ()), *self.variant]
        return f"{self.mix} ({', '.join(words)})" if words else self.mix


def usual_norm(data: str) -> str:
    """Return the norm of the paper's model for a data set."""
    return str(preset(data, "iid")["model.norm"])


def job_of(settings: Settings) -> Job:
    """Return the job that settings describe, published or not."""
    data, split, model = short_name(settings.data.name), settings.data.split, settings.model
    masked = settings.train.mask_fill != "none"
    mix = short_mix(settings.mix)
    return Job(data, SPLITS.get(split, split), mix, settings.assignment, model.norm, model.scaler, masked)


def differences(settings: Settings) -> tuple[str, ...]:
    """Return the differences of settings from the published ones, such as ``num-rounds 3 instead of 200``.

    Settings that the paper does not have are compared with this package's presets.
    """
    data, flat = short_name(settings.data.name), to_flat(settings)
    found = [] if data in DATA else [f"data.name {data} is none of the paper's"]
    if settings.data.split not in SPLITS:
        found.append(f"data.split {settings.data.split} is none of the paper's")
    identity = {key: flat[key] for key in ("data.split", "mix", "assignment", "model.norm", "model.scaler")}
    mask = "none" if settings.train.mask_fill == "none" else "auto"
    published = to_flat(from_flat({**identity, "data.name": data, "train.mask-fill": mask}))
    for key, value in flat.items():
        if value != published[key] and not key.startswith(FREE):
            found.append(f"{key} {_shown(value)}{INSTEAD}{_shown(published[key])}")
    return tuple(found)


def _shown(value: Flat) -> str:
    return "''" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


@cache
def departures(run: Run) -> tuple[str, ...]:
    """Return the differences of a run from the published settings and numbers of clients."""
    taking_part = sum(run.settings.mix.counts)
    drawn = math.ceil(Fraction(CLIENTS_A_ROUND * taking_part, taking_part + run.settings.mix.idle))
    sizes = sorted({len(record.rates) for record in run.records} - {drawn})
    found, published = differences(run.settings), CLIENTS.get(run.place[0], 100)
    if run.clients != published:
        found = (*found, f"clients {run.clients}{INSTEAD}{published}")
    return (*found, *(f"clients a round {size}{INSTEAD}{drawn}" for size in sizes))


def name_of(run: Run) -> str:
    """Return the name of a run's folder, which is unique within its data set.

    If the differences from the published settings are too long, a checksum replaces them.
    """
    job, method = job_of(run.settings), method_name(run.settings)
    changes = [file_name(own.replace(INSTEAD, " not ")) for own in departures(run) if INSTEAD in own]
    if len("_".join(changes)) > LONGEST:
        changes = [f"changed-{crc32(' '.join(changes).encode()):08x}"]
    other = "" if method == "HeteroFL" else method.removesuffix(" (variant)").lower()
    words = (job.split, job.mix, other, job.assignment, *job.variant)
    return "_".join([*map(file_name, filter(None, words)), *changes, f"seed-{run.seed}"])


VARIABLE = "HETEROFL_PAPER"
FILES = ("tables.csv", "ablation_iid.csv", "ablation_noniid.csv")
BASELINES = ("standalone", "fedavg", "lg-fedavg")
"""Rows that the paper copies from Liang et al. (2020), which our runs do not reproduce: results/contradictions.md."""

TABLES = {"7": "MNIST", "8": "CIFAR10", "9": "WikiText2", "4": "Ablation, IID", "5": "Ablation, non-IID"}
"""Tables of the paper by number, in the order of importance. Tables 1 to 3 are rows of 7 to 9, so they are left out."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A number printed in the paper."""

    table: str  # number of the table
    job: Job
    metric: str  # name of the metric in records, such as global-accuracy
    printed: str  # the number as text
    value: float

    @property
    def group(self) -> str:
        """Name of the group of tables: ``HeteroFL`` or ``ablations``."""
        return "ablations" if self.table in "45" else "HeteroFL"

    def verdict(self, best: Summary) -> str:
        """Return whether the printed number agrees with our runs.

        The printed number is the best round of a single run, so it is compared with the 95 % prediction interval of our
        best rounds, widened by the rounding of the printed number.
        """
        if best.prediction is None:
            return TOO_FEW
        low, high = best.prediction
        rounded = 0.5 * 10.0 ** -len(self.printed.partition(".")[2])
        return AGREES if low - rounded <= self.value <= high + rounded else DIFFERS


def paper_folder(given: Path | None) -> Path | None:
    """Return the folder with the paper's numbers.

    This is ``given``, else the folder in ``HETEROFL_PAPER``, else ``shared/paper`` next to the project, else None.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    beside = PROJECT.parent / "shared" / "paper"
    return named or (beside if beside.is_dir() else None)


def read_cells(folder: Path) -> tuple[Cell, ...]:
    """Return all numbers of HeteroFL in Tables 4, 5 and 7 to 9."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}; name the folder that has {', '.join(FILES)}")
    readers = zip(FILES, (_main, _ablation, _ablation), strict=True)
    return tuple(cell for name, read in readers for row in rows_of(folder / name) for cell in read(row))


def _main(row: Mapping[str, str]) -> Iterator[Cell]:
    """Yield the cells of a row of Tables 7 to 9, whose jobs are Dynamic."""
    data, method = row["dataset"], row["method"]
    if method in BASELINES:
        return
    table = {title.lower(): number for number, title in TABLES.items()}[data]
    mix = short_mix(Mix.parse(method))
    kind = "perplexity" if data == "wikitext2" else "accuracy"
    for column, scope in {"iid": "global", "noniid_local": "local", "noniid_global": "global"}.items():
        if row[column]:
            job = Job(data, column.partition("_")[0], mix, norm=usual_norm(data))
            yield Cell(table, job, f"{scope}-{kind}", row[column], float(row[column]))


def _ablation(row: Mapping[str, str]) -> Iterator[Cell]:
    """Yield the cells of a row of Table 4 or 5; only Table 5 has jobs without a mask."""
    iid = "masked_loss" not in row
    mix, scaler, masked = short_mix(Mix.parse(row["mode"])), row["scaler"] != "no", row.get("masked_loss") != "no"
    for data in ("mnist", "cifar10"):
        job = Job(data, "iid" if iid else "noniid", mix, norm=row["norm"], scaler=scaler, masked=masked)
        for scope in ("global",) if iid else ("local", "global"):
            printed = row[data if iid else f"{data}_{scope}"]
            yield Cell("4" if iid else "5", job, f"{scope}-accuracy", printed, float(printed))


Key = tuple[Job, str]
"""A job and the name of a metric."""

Printed = Mapping[Key, Sequence[Cell]]


def by_job(cells: Iterable[Cell]) -> dict[Key, list[Cell]]:
    """Return the printed numbers of each job and metric, with Tables 7 to 9 before the ablations."""
    found: dict[Key, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: list(TABLES).index(cell.table)):
        found.setdefault((cell.job, cell.metric), []).append(cell)
    return found
