"""The numbers that the paper prints, read from a folder that is not part of this project."""

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.errors import ConfigError
from simulations.published.jobs import Job, short_mix, usual_norm

VARIABLE = "HETEROFL_PAPER"
FILES = ("tables.csv", "ablation_iid.csv", "ablation_noniid.csv")
BASELINES = ("standalone", "fedavg", "lg-fedavg")
"""Rows that the paper copies from Liang et al. (2020), which no run of ours can be set beside.

Their global number is that of the averaged model and of the ensemble, not the mean of the clients' models; their MLP
ends in a softmax before the cross-entropy, means are unweighted, and LG-FedAvg starts from a model of FedAvg.
"""

TABLES = {
    "7": "MNIST",
    "8": "CIFAR10",
    "9": "WikiText2",
    "4": "Ablation, IID",
    "5": "Ablation, non-IID",
}
"""The tables that print each number once, in the order of their importance; Tables 1 to 3 are rows of 7 to 9."""

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Cell:
    """One printed number.

    Attributes
    ----------
    table
        The number of its table.
    job
        The job that it is of.
    metric
        ``accuracy``, ``local``, ``global`` or ``perplexity``.
    printed, value
        The number as it is printed, and as a number.
    """

    table: str
    job: Job
    metric: str
    printed: str
    value: float

    @property
    def group(self) -> str:
        """Whether the cell is of HeteroFL or of an ablation of it."""
        return "ablations" if self.table in "45" else "HeteroFL"


def paper_folder(given: Path | None, project: Path = PROJECT) -> Path | None:
    """Return the folder with the paper's numbers: the given one, that of ``HETEROFL_PAPER``, or one beside the project.

    None where none is named and none is beside the project.
    """
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    beside = project.parent / "shared" / "paper"
    return named or (beside if beside.is_dir() else None)


def read_cells(folder: Path) -> tuple[Cell, ...]:
    """Return every number of HeteroFL in Tables 4, 5 and 7 to 9."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder} lacks {', '.join(missing)}; name the folder that has {', '.join(FILES)}")
    return tuple(
        cell for name, read in zip(FILES, (_main, _iid, _noniid), strict=True) for cell in _read(folder / name, read)
    )


def _read(path: Path, read: Callable[[list[dict[str, str]]], Iterable[Cell]]) -> list[Cell]:
    try:
        return list(read(rows_of(path)))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not as expected: {error!r}; restore it") from error


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table of the paper, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _main(rows: list[dict[str, str]]) -> Iterator[Cell]:
    """Yield the cells of Tables 7 to 9, whose jobs are Dynamic."""
    numbers = {title.lower(): number for number, title in TABLES.items()}
    for row in rows:
        data, method = row["dataset"], row["method"]
        if method in BASELINES:
            continue
        mix = short_mix(Mix.parse(method))
        first = "perplexity" if data == "wikitext2" else "accuracy"
        for split, metric, column in (
            ("iid", first, "iid"),
            ("noniid", "local", "noniid_local"),
            ("noniid", "global", "noniid_global"),
        ):
            if row[column]:
                yield _cell(numbers[data], Job(data, split, mix, norm=usual_norm(data)), metric, row[column])


def _iid(rows: list[dict[str, str]]) -> Iterator[Cell]:
    for row in rows:
        for data in ("mnist", "cifar10"):
            yield _cell("4", _ablation(row, data, "iid"), "accuracy", row[data])


def _noniid(rows: list[dict[str, str]]) -> Iterator[Cell]:
    for row in rows:
        for data in ("mnist", "cifar10"):
            for metric in ("local", "global"):
                yield _cell("5", _ablation(row, data, "noniid"), metric, row[f"{data}_{metric}"])


def _cell(table: str, job: Job, metric: str, printed: str) -> Cell:
    return Cell(table, job, metric, printed, float(printed))


def _ablation(row: Mapping[str, str], data: str, split: str) -> Job:
    return Job(
        data,
        split,
        short_mix(Mix.parse(row["mode"])),
        norm=row["norm"],
        scaler=row["scaler"] != "no",
        masked=row.get("masked_loss") != "no",
    )
