"""Results of the authors' code on the job of a run: the file ``authors.csv``, and the comparison with the run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from heterofl_flwr.common.files import write_atomic
from simulations.results.configurations import Reached, possible, shown
from simulations.results.formats import Table, show_spread, to_csv
from simulations.results.paper import Key, rows_of
from simulations.results.runs import Scores, chosen_round
from simulations.results.statistics import summarise

FILE = "authors.csv"
SCORES = {"global": "global-accuracy", "local": "local-accuracy"}
COLUMNS = ("round", *SCORES, "seconds", "seed", "commit", "authors", "machine", "command")


def write_authors(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the results of the authors' code into a run's folder, atomically."""
    write_atomic(folder / FILE, to_csv(COLUMNS, rows).encode())


def read_authors(folder: Path) -> Scores:
    """Return the results of the authors' code by round; empty if it was not run."""
    rows = rows_of(folder / FILE) if (folder / FILE).exists() else []
    return {int(row["round"]): {name: float(row[column]) for column, name in SCORES.items()} for row in rows}


def authors_table(found: Mapping[Key, Reached]) -> Table:
    """Return the table that compares our runs with the authors' code, for jobs that their code has run."""
    return Table(
        "tab:authors",
        "MNIST, beside the authors' code",
        ("job", "metric", "seeds", "rounds", "ours", "the authors' code", "difference"),
        tuple(row for own in found.values() for row in _beside_authors(own)),
        "Their code on the same data, run by python -m simulations.reference; authors.csv beside a run's history says "
        "more. Each seed's value is its mean over all rounds that every run of both sides tested, or the best of "
        "these; then mean ± standard deviation over seeds.",
    )


def _beside_authors(own: Reached) -> Iterator[tuple[str, ...]]:
    """Yield rows that compare our runs with theirs: means over each half of the common test rounds, and best rounds."""
    job, metric = own.configuration.job, own.metric
    theirs = [scores for run, _ in own.runs if (scores := read_authors(run.path))]
    if job is None or not theirs or metric not in [SCORES["global"], *(SCORES.values() if job.split != "iid" else ())]:
        return
    ours = [{number: values for number, values in run.scores.items() if metric in values} for run, _ in own.runs]
    both = sorted(set.intersection(*(set(scores) for scores in (*ours, *theirs))))

    def best(scores: Scores) -> float:
        tested = {number: scores[number] for number in both}
        return tested[chosen_round(tested, metric)][metric]

    def mean_of(rounds: Sequence[int]) -> Callable[[Scores], float]:
        return lambda scores: fmean(scores[number][metric] for number in rounds)

    halves = filter(None, (both[: len(both) // 2], both[len(both) // 2 :]))
    values = {f"{half[0]} to {half[-1]}": mean_of(half) for half in halves}
    what = (f"{job}, {job.split}", metric.replace("-", " "), f"{len(ours)}, theirs {len(theirs)}")
    for rounds, value in (values | {f"best of {len(both)}": best} if both else {}).items():
        one, two = (
            summarise([shown(metric, value(side)) for side in sides], possible(metric)) for sides in (ours, theirs)
        )
        yield (*what, rounds, show_spread(one), show_spread(two), f"{one.mean - two.mean:+.2f}")
