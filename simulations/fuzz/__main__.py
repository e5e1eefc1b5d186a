"""Send the server what no good client sends, and read what nobody wrote, a hundred thousand times.

Each reply, answer, setting or file is a good one that was changed by chance. It must be refused, with an error of this
package, or be harmless: then it counts for what it says, and for nothing else. Neither may it end the run, nor may a
refused one leave any trace in the model. The exit status is 0 if that is so, and 1 if not.

With --wire nodes attack a SuperLink with TLS and known nodes instead: with all that must be refused at once, by
stalling, with bombs, and with lies that fit, which count. It takes many minutes.
"""

import random
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from heterofl_flwr.core.formatting import render
from heterofl_flwr.core.randomness import derive
from simulations.bench.measure import describe_machine
from simulations.fuzz import files, queries, replies
from simulations.fuzz.target import OUTCOMES, Target
from simulations.fuzz.wire import CASES, HEADER, run_case
from simulations.program import chosen, parser_of, status_of, without_logs, words

PROGRAM = "simulations.fuzz"
Row = tuple[str, str]


def main(arguments: list[str] | None = None) -> int:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("--replies", type=int, default=1000, help="replies to instructions to train")
    over = f"over a SuperLink; default: {','.join(CASES)}"
    own.add_argument("--wire", nargs="?", const="", metavar="GROUP,...", help=over)
    own.add_argument("--seed", type=int, default=0, help="of every change")
    options = own.parse_args(arguments)
    print(describe_machine(), flush=True)
    if options.wire is not None:
        return status_of(PROGRAM, lambda: cross(chosen("group of cases", words(options.wire), list(CASES))))
    found: dict[Row, Counter[str]] = defaultdict(Counter)
    faults: list[str] = []
    with without_logs():
        for number, (row, outcome) in enumerate(trials(options.replies, options.seed)):
            what = outcome.partition(":")[0]
            found[row][what] += 1
            if what in OUTCOMES[2:] and len(faults) < 20:
                faults.append(f"{'/'.join(row)}, number {number}: {outcome}")
    print(table(found), *faults, sep="\n")
    return 1 if faults else 0


def cross(groups: list[str]) -> int:
    """Run cases over the wire, and print a row for each; return 1 if a promise is broken."""
    before, faults = 0, []
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory(prefix="wire-") as folder:
        for case in (case for group in groups for case in CASES[group]):
            result = run_case(case, Path(folder))
            faults += [f"{case.name}: {fault}" for fault in result.faults(before)]
            print(result.row, flush=True)
            before = result.server
    print(*faults, sep="\n")
    return 1 if faults else 0


def trials(number: int, seed: int) -> Iterator[tuple[Row, str]]:
    """Yield the outcomes: so many replies, and for each of what else can be forged a twentieth of them."""
    for name, times, targets in groups(number):
        for own in range(times):
            draw = random.Random(derive(seed, name, own))
            for target in targets:
                kind = target.kinds[own % len(target.kinds)]
                yield (target.name, kind), target.outcome(kind, draw)


def groups(number: int) -> Iterator[tuple[str, int, Sequence[Target]]]:
    """Yield targets that share their draws, with a name for these and how often each is tried."""
    for server in replies.servers():
        yield server.upload, -(-number // len(replies.UPLOADS)), server.targets
    for target in chain(queries.targets(), files.targets()):
        yield target.name, max(number // 20, 1), [target]


def table(found: dict[Row, Counter[str]]) -> str:
    """Return the counts by target and kind, and their sums."""
    sums: dict[Row, Counter[str]] = defaultdict(Counter)
    for (what, _), counts in found.items():
        sums[what, "all"] += counts
    rows = {**found, **sums, ("all", ""): sum(sums.values(), Counter())}
    cells = [
        (f"{what:<18}{kind}", str(own.total()), *(str(own[name]) for name in OUTCOMES))
        for (what, kind), own in rows.items()
    ]
    return f"\n{render(('what              kind', 'number', *OUTCOMES), cells, 'table')}\n"


if __name__ == "__main__":
    sys.exit(main())
