"""Convert Flower's own examples to HeteroFL by small edits, and run each beside its original.

Give a checkout of Flower's repository (github.com/adap/flower, commit fdef7af). Data come from copies laid out as on
Hugging Face's hub (``--root`` or HETEROFL_DATA); where there is none, and in place of pretrained weights, small made
ones are used. The exit status is 0 if each example keeps to its limit of lines and learns where FedAvg learns.
"""

import argparse
import difflib
import os
import sys
import tempfile
from pathlib import Path

from heterofl_flwr.errors import ConfigError
from simulations.conversions.checks import TOLERANCE, check_fedavg, check_noise
from simulations.conversions.examples import EXAMPLES, Example
from simulations.conversions.trial import HEADING, missing, row, try_example
from simulations.program import parser_of, status_of

PROGRAM = "simulations.conversions"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return status_of(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> int:
    work = options.out or Path(tempfile.mkdtemp(prefix="conversions-"))
    print(row(HEADING), row("---" for _ in HEADING), sep="\n")
    trials = []
    for example in chosen(options.names):
        if absent := missing(example):
            skipped = f"skipped: needs {', '.join(absent)}"
            print(row([example.short, example.api, *[""] * 5, skipped, ""]), flush=True)
            continue
        trials.append(try_example(example, options.checkout, work, options.root))
        print(row(trials[-1].cells()), flush=True)
    good = all(trial.good for trial in trials)
    if options.checks:
        difference = check_fedavg(options.checkout, work, options.root)
        print(f"quickstart-pytorch, mix a1, weights examples: {difference:.1e} from FedAvg after three rounds")
        alike = check_noise(options.checkout, work, options.root)
        print(f"opacus: {alike} replies of two runs are the same")
        good = good and difference <= TOLERANCE and not alike
    print(f"apps and logs: {work}")
    return 0 if good else 1


def chosen(names: list[str]) -> list[Example]:
    """Return the examples of these names; all without any."""
    known = {example.short: example for example in EXAMPLES}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            raise ConfigError(f"there is no conversion of {name!r}; expected one of {', '.join(near or known)}")
    return [example for name, example in known.items() if not names or name in names]


def parser() -> argparse.ArgumentParser:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("checkout", type=Path, help="a checkout of Flower's repository, or a folder with its examples/")
    own.add_argument("names", nargs="*", help="examples; without any, all of them")
    own.add_argument(
        "--checks", action="store_true", help="also compare one level with FedAvg, and private replies of two runs"
    )
    own.add_argument("--out", type=Path, help="a folder for the converted apps and their logs (a new temporary one)")
    own.add_argument(
        "--root",
        default=os.environ.get("HETEROFL_DATA", ""),
        metavar="DIR",
        help="data sets, laid out as on the hub; else HETEROFL_DATA; else made ones",
    )
    return own


if __name__ == "__main__":
    sys.exit(main())
