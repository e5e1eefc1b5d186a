"""Slice every classification model of torchvision, check all that must hold, and write the table of which work.

Each model is built with random weights and sliced at several rates; nothing is downloaded. What was found is kept, one
line for each model, so that a run that was interrupted goes on where it was. Without names, all models are checked; it
takes about an hour, and 10 GiB of memory for the largest. The exit status is 0 if all models that were named work.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torchvision  # type: ignore[import-untyped]

from heterofl_flwr.runs.files import append_line, write_atomic
from simulations.bench.measure import describe_machine
from simulations.model_zoo import models
from simulations.model_zoo.check import MOST_DIFFERENT, MOST_OFF, RATES
from simulations.model_zoo.models import DOUBLE, SIZE, Finding
from simulations.program import chosen, parser_of, status_of

_INTRODUCTION = """# Models that are known to work

Which models of torchvision {version} work for federated learning with clients of unequal size: each classification
model, sliced by `elastic`, with random weights. A command writes this page; do not edit it:

```bash
python -m simulations.model_zoo --out docs/reference/models.md
```

**{working} of {all} work.** That means, at the rates {rates}:

- the slice is built, and trains; what it sends is averaged, and the mean is loaded again;
- its weights are exactly those that its `Plan` names; at rate 1 weights and output are the model's own, bit for bit;
- it has the number of parameters that a count axis by axis gives, within {off:.0%};
- it computes what the full model computes with zeros for all that the slice lacks. Where a layer counts its channels,
  zeros are not enough: the moments of a layer norm, and the temperature of attention, which follows the width of a
  head. There the full model is made to count only those that the slice keeps, and the last column names them;
- nothing of the model given is changed.

In the table:

- *trace*: seconds of one core for `elastic`, on images of {size} x {size} unless the row says otherwise.
- *difference*: the largest difference between the two outputs, as a part of the difference that two inputs make. The
  limit is {double:.0e} in double precision, and {single:.0e} in single precision, in which models of more than {many}
  million parameters are checked; but for EfficientNets and VGGs, in which at small rates little of the input arrives.

Made with seed {seed} on: {made}.
"""


def page(findings: Sequence[Finding], version: str, seed: int) -> str:
    """Return the page; findings come in the order of the table."""
    working = [finding for finding in findings if not finding.reason]
    others = [finding for finding in findings if finding.reason]
    introduction = _INTRODUCTION.format(
        version=version,
        working=len(working),
        all=len(findings),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        off=MOST_OFF,
        size=SIZE,
        double=min(MOST_DIFFERENT.values()),
        single=max(MOST_DIFFERENT.values()),
        many=DOUBLE // 1_000_000,
        seed=seed,
        made=_made(findings),
    )
    heads = ["model", *(f"parameters at {rate:g}" for rate in RATES), "trace", "difference", "counts its channels"]
    parts = [introduction, "## Those that work\n", _table(heads, working)]
    if others:
        parts += ["\n## Those that do not\n", _table(["model", "parameters", "layer and reason"], others)]
    return "\n".join(parts)


def _made(findings: Sequence[Finding]) -> str:
    """Return on which machines and at which commits the findings were made."""
    commits: dict[str, set[str]] = {}
    for finding in findings:
        machine, _, commit = finding.made.partition("; commit ")
        commits.setdefault(machine, set()).add(commit)
    return "; ".join(f"{machine}; at {', '.join(sorted(own))}" for machine, own in sorted(commits.items()))


def _table(heads: Sequence[str], findings: Sequence[Finding]) -> str:
    rows = [heads, ["---"] * len(heads)]
    for one in findings:
        name = f"`{one.name}`" + ("" if one.size == SIZE else f" ({one.size} x {one.size})")
        measured = [f"{one.seconds:.1f} s", f"{one.difference:.0e}", ", ".join(one.explained) or "-"]
        numbers = [f"{number:,}" for number in one.parameters.values()]
        rows.append([name, *numbers, *([one.reason] if one.reason else measured)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def line(finding: Finding) -> str:
    """Return one line about a finding, for a terminal."""
    if finding.reason:
        return f"{finding.name:<20} no: {finding.reason}"
    (_, full), *others = finding.parameters.items()
    shares = ", ".join(f"{number / full:.1%} at {rate:g}" for rate, number in others)
    measured = f"trace {finding.seconds:.1f} s, difference {finding.difference:.0e}"
    return f"{finding.name:<20} works: {full:,} parameters, {shares}; {measured}"


PROGRAM = "simulations.model_zoo"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    return status_of(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> int:
    names = chosen("classification model of torchvision", options.names, models.names())
    kept = models.read(options.findings)
    made = describe_machine()
    torch.set_num_threads(1)  # so that runs are comparable, and repeatable
    print(made, flush=True)
    for number, name in enumerate(names, 1):
        took, started = "found before", time.monotonic()
        if name not in kept:
            kept[name] = models.find(name, made, options.seed)
            append_line(options.findings, json.dumps(asdict(kept[name])))
            took = f"{time.monotonic() - started:.0f} s"
        print(f"[{number}/{len(names)}] {line(kept[name])}; {took}", flush=True)
    found = [kept[name] for name in names]
    working = sum(not finding.reason for finding in found)
    print(f"{working} of {len(found)} work")
    if options.out:
        write_atomic(options.out, page(found, torchvision.__version__.partition("+")[0], options.seed).encode())
        print(f"wrote {options.out}")
    return int(bool(options.names) and working < len(found))


def parser() -> argparse.ArgumentParser:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("names", nargs="*", help="models to check, by torchvision's names; without any, all of them")
    own.add_argument("--out", type=Path, help="write the table as this page; give all names, or none, for a whole one")
    findings = "where to keep what was found, and to read what is there already (%(default)s)"
    own.add_argument("--findings", type=Path, default=Path("runs/zoo/findings.jsonl"), help=findings)
    own.add_argument("--seed", type=int, default=0, help="of the weights and the images (%(default)s)")
    return own


if __name__ == "__main__":
    sys.exit(main())
