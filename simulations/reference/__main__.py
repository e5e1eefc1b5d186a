"""Run the code of HeteroFL's authors on the job of a run of this package, with the same data.

If a run and the paper differ, this shows whether the cause is the code or the data and machine. The authors' functions
are called as their programs call them. The accuracies are written into the run's folder as ``authors.csv``, and
``python -m simulations.results`` compares them. The run must be one of MNIST with the published settings.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import write_atomic
from heterofl_flwr.core.formatting import duration
from heterofl_flwr.runs.origin import UNKNOWN, command, commit, commit_of, machine
from simulations.program import cores, parser_of, start
from simulations.reference.authors import Authors, Experiment, Parts
from simulations.results.paper import CLIENTS_A_ROUND, departures, job_of, name_of
from simulations.results.runs import AUTHORS, AUTHORS_SCORES, Run, portable, read_run
from simulations.results.tables import to_csv

COLUMNS = ("round", *AUTHORS_SCORES, "seconds", "seed", "commit", "authors", "machine", "command")
NORMS = {"sbn": "bn"}
"""The authors' names of norms, by this package's names. Norms with the same name in both are left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of("simulations.reference", __doc__)
    parser.add_argument("authors", type=Path, metavar="AUTHORS", help="a checkout of the authors' repository")
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run of ours")
    parser.add_argument("--rounds", type=int, metavar="N", help="at most so many rounds; default: all of the run")
    parser.add_argument("--root", default="", metavar="DIR", help="MNIST, laid out as on the hub; else HETEROFL_DATA")
    parser.add_argument("--work", type=Path, default=Path("runs/reference"), metavar="DIR", help="default: %(default)s")
    return start(parser, run_reference, arguments)


def run_reference(options: argparse.Namespace) -> None:
    """Run the authors' code, and write its accuracies after each test."""
    run = read_run(options.run)
    check(run)
    number = min(options.rounds or run.settings.num_rounds, run.settings.num_rounds)
    origin = {
        "seed": run.seed,
        "commit": commit(),
        "authors": commit_of(options.authors, "src") or UNKNOWN,
        "machine": f"{machine()}, {cores()} used",
        "command": portable(command()),
    }
    options.work.mkdir(parents=True, exist_ok=True)
    with authors_of(run, options) as side:
        for history in play(side, number, run.settings.evaluate.every):
            tested = list(rows(history))
            write_atomic(run.path / AUTHORS, to_csv(COLUMNS, [{**row, **origin} for row in tested]).encode())
            for row in tested[-1:]:
                line = "round {round:g}: global {global:.2%}, local {local:.2%}, after ".format(**row)
                print(line + duration(row["seconds"]), flush=True)


def check(run: Run) -> None:
    """Raise ``ConfigError`` for a run that the authors' code cannot repeat."""
    what = run.place[0], run.settings.model.name
    if what != ("mnist", "cnn"):
        raise ConfigError(f"{run.path} is a run of {' and '.join(what)}; expected mnist and cnn, the only ones here")
    if found := departures(run):
        raise ConfigError(
            f"{run.path} is not as published ({'; '.join(found)}); expected a run with the paper's settings, "
            "as heterofl sweep -m experiment=table7 makes them"
        )


def authors_of(run: Run, options: argparse.Namespace) -> Authors:
    """Return ``Authors`` with the settings of a run."""
    settings, job = run.settings, job_of(run.settings)
    clients = round(CLIENTS_A_ROUND / settings.sample.fraction_train)
    variant = f"{NORMS.get(job.norm, job.norm)}_{job.scaler:d}_{job.masked:d}"
    what = (str(settings.mix), settings.data.split, job.assignment, variant)
    experiment, state = Experiment(options.root, clients, *what), options.work / f"{name_of(run)}.pt"
    return Authors(options.authors, experiment, balanced=False, seed=run.seed, state=state)


def play(side: Authors, rounds: int, every: int) -> Iterator[Sequence[Parts]]:
    """Run the remaining rounds up to round ``rounds``, and yield the history after each test.

    The model is tested after every ``every`` rounds (0: never) and after the last round. If no round remains, yield the
    history once.
    """
    if len(side.history) >= rounds:
        yield side.history[:rounds]
    while (number := len(side.history) + 1) <= rounds:
        tested = number == rounds or (every > 0 and number % every == 0)
        side.play(evaluate=tested)
        if tested:
            yield side.history


def rows(history: Sequence[Parts]) -> Iterator[Mapping[str, float]]:
    """Yield a row for each tested round; ``seconds`` is the total time of this round and all rounds before."""
    seconds = 0.0
    for number, parts in enumerate(history, 1):
        seconds += parts.whole
        if parts.test:
            reached = {"global": round(parts.accuracy, 6), "local": round(parts.local_accuracy, 6)}
            yield {"round": number, **reached, "seconds": round(seconds, 1)}


if __name__ == "__main__":
    raise SystemExit(main())
