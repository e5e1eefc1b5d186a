"""One row a run and metric, for a file of comma-separated values."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from simulations.published.cells import Cell
from simulations.published.gathering import Gathered
from simulations.published.portable import portable
from simulations.published.runs import Run, Score
from simulations.published.tally import Key, as_printed, by_job

COLUMNS = (
    "dataset",
    "mix",
    "split",
    "metric",
    "final",
    "best",
    "paper",
    "seed",
    "commit",
    "table",
    "paper_ablation",
    "best_round",
    "rounds",
    "assignment",
    "norm",
    "scaler",
    "mask",
    "parameters",
    "seconds",
    "failures",
    "machine",
    "command",
    "note",
)
IDENTITY = ("dataset", "mix", "split", "seed", "assignment", "norm", "scaler", "mask")
"""What tells one run that counts from another; it has a row for each of its metrics."""

DIGITS = 4


def to_csv(gathered: Gathered, cells: Sequence[Cell]) -> str:
    """Return every finished run; ``note`` says why some do not count, and those have no number of the paper."""
    printed = by_job(cells)
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in gathered.counted:
        writer.writerows(_rows(run, printed, ""))
    for run in gathered.different:
        writer.writerows(_rows(run, {}, f"not as published: {'; '.join(run.differences)}"))
    return file.getvalue()


def counted_in(path: Path) -> int:
    """Return how many runs count in a file that ``to_csv`` made; 0 where there is none."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row.get("note")]
    return len({tuple(row.get(column) for column in IDENTITY) for row in rows})


def _rows(run: Run, printed: Mapping[Key, Sequence[Cell]], note: str) -> Iterator[dict[str, object]]:
    for metric in run.metrics:
        score = run.score(metric)
        if score is not None:
            yield {**_origin(run), **_numbers(metric, score, printed.get((run.job, metric), ())), "note": note}


def _numbers(metric: str, score: Score, cells: Sequence[Cell]) -> dict[str, object]:
    """Return ours and theirs; Tables 7 to 9 come before the ablations, which print the same jobs with fewer digits."""
    return {
        "metric": metric,
        "final": round(as_printed(metric, score.final), DIGITS),
        "best": round(as_printed(metric, score.best), DIGITS),
        "best_round": score.best_round,
        "paper": cells[0].printed if cells else "",
        "paper_ablation": next((cell.printed for cell in cells[1:] if cell.group == "ablations"), ""),
        "table": " ".join(cell.table for cell in cells),
    }


def _origin(run: Run) -> dict[str, object]:
    job = run.job
    return {
        "dataset": job.data,
        "mix": job.mix,
        "split": job.split,
        "seed": run.seed,
        "commit": run.commit,
        "rounds": run.rounds,
        "assignment": job.assignment,
        "norm": job.norm,
        "scaler": _word(job.scaler),
        "mask": _word(job.masked),
        "parameters": "" if run.parameters is None else round(run.parameters, 1),
        "seconds": round(run.seconds, 1),
        "failures": run.failures,
        "machine": run.machine,
        "command": portable(run.command),
    }


def _word(value: bool) -> str:
    return "yes" if value else "no"
