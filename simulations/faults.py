"""Let faults strike small runs, each kind at three moments of a round, and judge what becomes of them.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.runs.origin import command
from simulations.benchmarks.machine import describe_machine
from simulations.faulty.cell import Cells, Outcome
from simulations.faulty.deployed import DeployedCells
from simulations.faulty.fault import MOMENTS
from simulations.faulty.kinds import KINDS, names_of
from simulations.faulty.table import line_of, summary, to_csv, to_markdown
from simulations.program import parser_of, status_of

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
    return status_of(PROGRAM, lambda: judge(options))


def judge(options: argparse.Namespace) -> int:
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
        table = to_csv(outcomes) if options.out.suffix == ".csv" else f"{heading}\n\n{to_markdown(outcomes)}"
        options.out.write_text(table, encoding="utf-8")
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
    own.add_argument("--out", type=Path, metavar="FILE", help="write the table: .csv a row a cell, else Markdown")
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
