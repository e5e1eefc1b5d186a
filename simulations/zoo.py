"""Slice every classification model of torchvision, check all that must hold, and write the table of which work.

Each model is built with random weights and sliced at several rates; nothing is downloaded. What was found is kept, one
line for each model, so that a run that was interrupted goes on where it was. Without names, all models are checked; it
takes about an hour, and 10 GiB of memory for the largest. The exit status is 0 if all models that were named work.
"""

import argparse
import difflib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torchvision  # type: ignore[import-untyped]

from heterofl_flwr.errors import ConfigError
from simulations.benchmarks.machine import describe_machine
from simulations.program import parser_of, status_of
from simulations.zoology import findings, torchvisions
from simulations.zoology.page import line, page

PROGRAM = "simulations.zoo"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return status_of(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> int:
    names = chosen(options.names)
    kept = {} if options.again else findings.read(options.findings)
    made = describe_machine()
    torch.set_num_threads(1)  # so that runs are comparable, and repeatable
    print(made, flush=True)
    for number, name in enumerate(names, 1):
        if name not in kept:
            started = time.monotonic()
            kept[name] = findings.find(name, made, options.seed)
            findings.add(options.findings, kept[name])
            took = f"; {time.monotonic() - started:.0f} s"
        else:
            took = "; found before"
        print(f"[{number}/{len(names)}] {line(kept[name])}{took}", flush=True)
    found = [kept[name] for name in names]
    working = sum(not finding.reason for finding in found)
    print(f"{working} of {len(found)} work")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(found, torchvision.__version__.partition("+")[0], options.seed), encoding="utf-8")
        print(f"wrote {options.out}")
    return 0 if working == len(found) or not options.names else 1


def chosen(given: Sequence[str]) -> list[str]:
    """Return the models to check, in torchvision's order."""
    names = torchvisions.names()
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names)
            raise ConfigError(
                f"torchvision has no classification model {name!r}; expected one of its {len(names)}"
                + (f", such as {', '.join(near)}" if near else f": {', '.join(names)}")
            )
    return [name for name in names if not given or name in given]


def parser() -> argparse.ArgumentParser:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("names", nargs="*", help="models to check, by torchvision's names; without any, all of them")
    own.add_argument("--out", type=Path, help="write the table as this page; give all names, or none, for a whole one")
    own.add_argument(
        "--findings",
        type=Path,
        default=Path("runs/zoo/findings.jsonl"),
        help="where to keep what was found, and to read what is there already (%(default)s)",
    )
    own.add_argument("--again", action="store_true", help="check models again that were found before")
    own.add_argument("--seed", type=int, default=0, help="of the weights and the images (%(default)s)")
    return own


if __name__ == "__main__":
    sys.exit(main())
