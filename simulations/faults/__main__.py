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
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby, product
from pathlib import Path

from heterofl_flwr.core.formatting import markdown
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.runs.files import write_atomic
from heterofl_flwr.runs.origin import command
from simulations.bench.measure import describe_machine
from simulations.faults.cells import Cells, Outcome
from simulations.faults.deployed import DeployedCells
from simulations.faults.fault import MOMENTS
from simulations.faults.kinds import KINDS, names_of
from simulations.program import chosen, parser_of, status_of, words
from tests.deployment.processes import Deployment

HEADER = ("fault", "what happens", "model", "rounds lost", *(f"{moment}: s" for moment in MOMENTS), "within")


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a row for each kind: the model, the rounds lost and the seconds to recover, at each moment."""
    rows = [_row(name, list(own)) for name, own in groupby(outcomes, lambda outcome: outcome.fault.kind)]
    return "\n".join([markdown(HEADER, rows), "", summary(outcomes), ""])


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one sentence on all cells."""
    bad = sum(bool(outcome.faults) for outcome in outcomes)
    kinds = len({outcome.fault.kind for outcome in outcomes})
    return f"{len(outcomes)} cells of {kinds} kinds of faults: {len(outcomes) - bad} as promised, {bad} not."


def line_of(outcome: Outcome) -> str:
    """Return one line on a cell."""
    what = f"model {outcome.model}, rounds lost {outcome.rounds_lost}, {outcome.seconds:.1f} s"
    verdict = "; ".join(outcome.faults) or "as promised"
    return f"{outcome.fault.kind:<18}{outcome.fault.moment:<8}{what:<48}{verdict}"


def _row(name: str, own: Sequence[Outcome]) -> list[str]:
    at = {outcome.fault.moment: f"{outcome.seconds:.1f}{' **!**' if outcome.faults else ''}" for outcome in own}
    return [
        name,
        KINDS[name].what,
        _each(outcome.model for outcome in own),
        _each(outcome.rounds_lost for outcome in own),
        *(at.get(moment, "") for moment in MOMENTS),
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
    own = parser_of(PROGRAM, __doc__, EXAMPLES)
    own.add_argument("--kinds", default="", metavar="KIND,...", help="default: all; --list names them")
    own.add_argument("--moments", default="", metavar="MOMENT,...", help=f"default: {','.join(MOMENTS)}")
    own.add_argument("--deadline", type=float, help="seconds of a round; default: 15, under a SuperLink 60")
    under = "the kinds under a SuperLink with TLS, and two SuperNodes"
    own.add_argument("--deployment", action="store_true", help=under)
    own.add_argument("--seed", type=int, default=0, help="of the runs")
    own.add_argument("--out", type=Path, metavar="FILE", help="write the table, in Markdown")
    own.add_argument("--work", type=Path, metavar="FOLDER", help="keep the runs and their logs here")
    own.add_argument("--list", action="store_true", help="name the kinds of faults and end")
    options = own.parse_args(arguments)
    if options.list:
        print(*(f"{name:<20}{kind.what}" for name, kind in KINDS.items() if kind.actor != "none"), sep="\n")
        return 0
    return status_of(PROGRAM, lambda: assess(options))


def assess(options: argparse.Namespace) -> int:
    """Run the cells that were asked for; return 0 if all are as promised, and 1 if not."""
    names = chosen("kind", words(options.kinds), names_of(deployed=options.deployment))
    moments = chosen("moment", words(options.moments), MOMENTS)
    heading = f"{describe_machine()}\n{command()}"
    print(heading, flush=True)
    logging.getLogger("heterofl_flwr").addHandler(logging.NullHandler())  # what is damaged is no news here
    with ExitStack() as stack:
        folder = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="faults-")))
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: name another folder with --work")
        folder.mkdir(parents=True, exist_ok=True)
        if options.deployment:
            deployment = stack.enter_context(Deployment(folder.resolve()))
            cells: Cells = DeployedCells(deployment, deadline=options.deadline or 60.0, seed=options.seed)
        else:
            cells = Cells(folder.resolve(), deadline=options.deadline or 15.0, seed=options.seed)
        outcomes = run(cells, names, moments)
    if options.out:
        write_atomic(options.out, f"{heading}\n\n{to_markdown(outcomes)}".encode())
    print(summary(outcomes))
    return int(any(outcome.faults for outcome in outcomes))


def run(cells: Cells, names: Sequence[str], moments: Sequence[str]) -> list[Outcome]:
    """Run all cells and print a line for each."""
    outcomes: list[Outcome] = []
    started = time.monotonic()
    for name, moment in product(names, moments):
        outcomes.append(cells.run(name, moment))
        done = f"[{len(outcomes)}/{len(names) * len(moments)}, {time.monotonic() - started:.0f} s]"
        print(f"{done:<16}{line_of(outcomes[-1])}", flush=True)
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
