"""Convert Flower's own examples to HeteroFL by small edits, and run each beside its original.

Give a checkout of Flower's repository (github.com/flwrlabs/flower, commit fdef7af). Data come from copies laid out as
on Hugging Face's hub (``--root`` or HETEROFL_DATA); where there is none, and in place of pretrained weights, small
made ones are used. The exit status is 0 if each example keeps to its limit of lines and learns where FedAvg learns.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from simulations.conversions.examples import EXAMPLES
from simulations.conversions.trial import HEADING, missing, row, try_example
from simulations.program import chosen, parser_of, status_of

PROGRAM = "simulations.conversions"


def main(arguments: list[str] | None = None) -> int:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("checkout", type=Path, help="a checkout of Flower's repository, or a folder with its examples/")
    own.add_argument("names", nargs="*", help="examples; without any, all of them")
    own.add_argument("--out", type=Path, help="a folder for the converted apps and their logs (a new temporary one)")
    root = "data sets, laid out as on the hub; else HETEROFL_DATA; else made ones"
    own.add_argument("--root", default=os.environ.get("HETEROFL_DATA", ""), metavar="DIR", help=root)
    options = own.parse_args(arguments)
    return status_of(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> int:
    work = options.out or Path(tempfile.mkdtemp(prefix="conversions-"))
    print(row(HEADING), row("---" for _ in HEADING), sep="\n")
    good = True
    for example in (EXAMPLES[name] for name in chosen("conversion of", options.names, list(EXAMPLES))):
        if absent := missing(example):
            print(row([example.short, example.api, *[""] * 5, f"skipped: needs {', '.join(absent)}", ""]), flush=True)
            continue
        trial = try_example(example, options.checkout, work, options.root)
        good = good and not trial.faults
        print(trial.row(), flush=True)
    print(f"apps and logs: {work}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
