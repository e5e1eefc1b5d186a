"""Convert Flower's own examples to HeteroFL by small edits, and run each beside its original.

Give a checkout of Flower's repository (github.com/adap/flower, commit fdef7af). Data come from copies laid out as on
Hugging Face's hub (``--root`` or HETEROFL_DATA); where there is none, and in place of pretrained weights, small made
ones are used. The exit status is 0 if each example keeps to its limit of lines and learns where FedAvg learns.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

from heterofl_flwr.errors import HeteroFLError
from simulations.conversions.examples import EXAMPLES, MIX, Edit
from simulations.conversions.trial import HEADING, MODEL, made, missing, row, try_example
from simulations.conversions.trial import run as run_app
from simulations.program import chosen, parser_of, status_of

PROGRAM = "simulations.conversions"
TOLERANCE = 1e-6
"""How far a parameter may be from FedAvg's."""


def check_fedavg(checkout: Path, work: Path, root: str) -> float:
    """Return the largest difference of a parameter after three rounds, with one level and weights by examples."""
    example = EXAMPLES["quickstart-pytorch"]
    all_alike = Edit("server_app", f'"{MIX}"', '"a1", weights="examples"')
    states = []
    for name, edits in (("fedavg", []), ("one-level", [*example.edits, all_alike])):
        folder, _ = made(example, checkout, work / example.short / f"equal-{name}", edits)
        # Small steps, so that what differs by rounding does not grow.
        run_app(example, folder, root, rows=1000, config={"learning-rate": 0.01})
        states.append(load_file(folder / MODEL))
    original, ours = states
    return max(float((original[name] - ours[name]).abs().max()) for name in original)


def check_noise(checkout: Path, work: Path, root: str) -> int:
    """Return how many replies of two private runs from the same model are the same, bit by bit."""
    example, replies = EXAMPLES["opacus"], []
    for number in ("first", "second"):
        folder, _ = made(example, checkout, work / example.short / f"private-{number}", example.edits)
        outcome = run_app(example, folder, root, rows=200, config={"num-server-rounds": 1}, repeatable=False)
        replies.append(outcome.replies)
    if not all(replies):
        raise HeteroFLError(f"{example.short}: no client sent a reply; its log is under {work / example.short}")
    return len(replies[0].items() & replies[1].items())


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
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
    if options.checks:
        difference = check_fedavg(options.checkout, work, options.root)
        print(f"quickstart-pytorch, mix a1, weights examples: {difference:.1e} from FedAvg after three rounds")
        alike = check_noise(options.checkout, work, options.root)
        print(f"opacus: {alike} replies of two runs are the same")
        good = good and difference <= TOLERANCE and not alike
    print(f"apps and logs: {work}")
    return 0 if good else 1


def parser() -> argparse.ArgumentParser:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("checkout", type=Path, help="a checkout of Flower's repository, or a folder with its examples/")
    own.add_argument("names", nargs="*", help="examples; without any, all of them")
    checks = "also compare one level with FedAvg, and private replies of two runs"
    own.add_argument("--checks", action="store_true", help=checks)
    own.add_argument("--out", type=Path, help="a folder for the converted apps and their logs (a new temporary one)")
    root = "data sets, laid out as on the hub; else HETEROFL_DATA; else made ones"
    own.add_argument("--root", default=os.environ.get("HETEROFL_DATA", ""), metavar="DIR", help=root)
    return own


if __name__ == "__main__":
    sys.exit(main())
