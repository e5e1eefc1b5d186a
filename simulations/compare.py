"""Set methods beside one another: what each reached on one split, and for how many rounds, bytes and multiplications.

Runs are the folders that ``heterofl run`` and ``simulations.run`` leave, at any depth below the folders that are named.
Finished runs on the same data and split are compared; those that differ in nothing but the seed are one method.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.runs.origin import command
from simulations.comparison.write import write
from simulations.program import parser_of, status_of

EXAMPLES = """
examples:
  python -m simulations.run -m experiment=compare data=digits seed=0,1,2
  python -m simulations.compare runs/jobs --out runs/compare
  python -m simulations.compare runs/jobs --target 0.8 --target 0.95
"""
PROGRAM = "simulations.compare"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(PROGRAM, __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="a run's folder, or one that holds some")
    parser.add_argument(
        "--out", type=Path, default=Path("runs", "compare"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--target",
        type=float,
        action="append",
        default=[],
        metavar="VALUE",
        help="when did each method reach this? Global accuracy, or the data set's own metric; may be given several "
        "times; default: 0.5 and 0.9",
    )
    options = parser.parse_args(arguments)
    return status_of(PROGRAM, lambda: print(write(options.runs, options.out, options.target, command())))


if __name__ == "__main__":
    sys.exit(main())
