"""What the authors' own code reached on the job of a run of ours: a file beside the run's history."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import write_atomic

FILE = "authors.csv"
SCORES = {"global": "global-accuracy", "local": "local-accuracy"}
"""From a column to the name of what it holds in a record of ours."""

ORIGIN = ("seconds", "seed", "commit", "authors", "machine", "command")
COLUMNS = ("round", *SCORES, *ORIGIN)

Scores = Mapping[int, Mapping[str, float]]
"""By round, what was measured after it."""


def write_authors(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the file of a run folder, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / FILE, text.getvalue().encode())


def read_authors(folder: Path) -> Scores:
    """Return what the authors' code reached; nothing where it was not run."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return _scores(csv.DictReader(file))
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not as expected ({error}): rows with the columns {', '.join(COLUMNS)}; remove it and "
            "let python -m simulations.arbiter write it again"
        ) from error


def _scores(rows: Iterable[Mapping[str, str]]) -> Scores:
    return {int(row["round"]): {name: float(row[column]) for column, name in SCORES.items()} for row in rows}
