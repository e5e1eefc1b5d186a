"""Let faults strike small runs, each kind at three moments of a round, and assess what becomes of them.

Each cell is a run of four rounds on the bundled digits, whose server is a process of its own. The fault strikes in the
third round (killed-at-end: in the last one): before its instructions are sent, during training, or after it, when
half of the checkpoint is written. What a fault ends is started again at once. A cell is as promised if

- the model is not lost: where replies are not subject to chance, it is, bit for bit, that of a run without the fault,
  or without the replies that the fault cost;
- no more than one round has to be trained again;
- the next round is saved within the deadline of a round and five seconds, what is started anew included.

The exit status is 0 if all cells are, and 1 if not.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.runs.origin import command
from simulations.bench.measure import describe_machine
from simulations.faults.cells import Cells, Outcome
from simulations.faults.deployed import DeployedCells
from simulations.faults.fault import MOMENTS
from simulations.faults.kinds import KINDS, names_of
from simulations.program import parser_of, status_of

HEADER = ("fault", "what happens", "model", "rounds lost", *(f"{moment}: s" for moment in MOMENTS), "within")


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a row for each kind: the model, the rounds lost and the seconds to recover, at each moment."""
    rows = [_row(list(own)) for _, own in groupby(outcomes, lambda outcome: outcome.kind)]
    lines = [f"| {' | '.join(cells)} |" for cells in (HEADER, ["---"] * len(HEADER), *rows)]
    return "\n".join([*lines, "", summary(outcomes), ""])


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one sentence on all cells."""
    bad = [outcome for outcome in outcomes if not outcome.good]
    kinds = len({outcome.kind for outcome in outcomes})
    return f"{len(outcomes)} cells of {kinds} kinds of faults: {len(outcomes) - len(bad)} as promised, {len(bad)} not."


def line_of(outcome: Outcome) -> str:
    """Return one line on a cell."""
    verdict = "as promised" if outcome.good else "; ".join(outcome.faults)
    what = f"model {outcome.model}, rounds lost {outcome.rounds_lost}, {outcome.seconds:.1f} s"
    return f"{outcome.kind:<18}{outcome.moment:<8}{what:<48}{verdict}"


def _row(own: Sequence[Outcome]) -> list[str]:
    at = {outcome.moment: outcome for outcome in own}
    seconds = [
        f"{at[moment].seconds:.1f}{'' if at[moment].good else ' **!**'}" if moment in at else "" for moment in MOMENTS
    ]
    return [
        own[0].kind,
        KINDS[own[0].kind].what,
        _each(outcome.model for outcome in own),
        _each(outcome.rounds_lost for outcome in own),
        *seconds,
        _each(f"{outcome.limit:g}" for outcome in own),
    ]


def _each(values: Iterable[object]) -> str:
    """Return the values of several moments, once if they agree."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


EXAMPLES = """
examples:
  python -m simulations.faults
  python -m simulations.faults --kinds server-killed,disk-full --moments after
  python -m simulations.faults --out runs/faults.md
  python -m simulations.faults --deployment
"""
PROGRAM = "simulations.faults"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.list:
        print(*(f"{name:<20}{kind.what}" for name, kind in KINDS.items() if kind.actor != "none"), sep="\n")
        return 0
    return status_of(PROGRAM, lambda: assess(options))


def assess(options: argparse.Namespace) -> int:
    """Run the cells that were asked for; return 0 if all are as promised, and 1 if not."""
    names = chosen("--kinds", options.kinds, names_of(deployed=options.deployment))
    moments = chosen("--moments", options.moments, MOMENTS)
    heading = f"{describe_machine()}\n{command()}"
    print(heading, flush=True)
    logging.getLogger("heterofl_flwr").addHandler(logging.NullHandler())  # what is damaged is no news here
    with folder_of(options.work) as folder:
        if options.deployment:
            with DeployedCells(folder, deadline=options.deadline or 60.0, seed=options.seed) as cells:
                outcomes = run(cells, names, moments)
        else:
            outcomes = run(Cells(folder, deadline=options.deadline or 15.0, seed=options.seed), names, moments)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(f"{heading}\n\n{to_markdown(outcomes)}", encoding="utf-8")
    print(summary(outcomes))
    return 0 if all(outcome.good for outcome in outcomes) else 1


def run(cells: Cells, names: Sequence[str], moments: Sequence[str]) -> list[Outcome]:
    """Run all cells and print a line for each."""
    outcomes = []
    started = time.monotonic()
    total = len(names) * len(moments)
    for name in names:
        for moment in moments:
            outcomes.append(cells.run(name, moment))
            done = f"[{len(outcomes)}/{total}, {time.monotonic() - started:.0f} s]"
            print(f"{done:<16}{line_of(outcomes[-1])}", flush=True)
    return outcomes


def chosen(option: str, text: str, known: Sequence[str]) -> list[str]:
    """Return the words of an option; all that are known if there are none."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [word for word in found if word not in known]:
        raise HeteroFLError(f"{option}: found {', '.join(unknown)}, expected some of {', '.join(known)}")
    return found or list(known)


def parser() -> argparse.ArgumentParser:
    own = parser_of(PROGRAM, __doc__, EXAMPLES)
    own.add_argument("--kinds", default="", metavar="KIND,...", help="default: all; --list names them")
    own.add_argument("--moments", default="", metavar="MOMENT,...", help=f"default: {','.join(MOMENTS)}")
    own.add_argument("--deadline", type=float, help="seconds of a round; default: 15, under a SuperLink 60")
    own.add_argument(
        "--deployment", action="store_true", help="the kinds under a SuperLink with TLS, and two SuperNodes"
    )
    own.add_argument("--seed", type=int, default=0, help="of the runs")
    own.add_argument("--out", type=Path, metavar="FILE", help="write the table, in Markdown")
    own.add_argument("--work", type=Path, metavar="FOLDER", help="keep the runs and their logs here")
    own.add_argument("--list", action="store_true", help="name the kinds of faults and end")
    return own


@contextmanager
def folder_of(work: Path | None) -> Iterator[Path]:
    """Return a folder for the cells; one that nobody asked for is removed in the end."""
    if work is not None:
        if work.exists() and any(work.iterdir()):
            raise SystemExit(f"faults: {work} is not empty: name another folder with --work")
        work.mkdir(parents=True, exist_ok=True)
        yield work.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="faults-") as made:
        yield Path(made)


if __name__ == "__main__":
    sys.exit(main())
