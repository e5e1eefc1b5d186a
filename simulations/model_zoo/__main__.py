"""Slice models of torchvision, timm and transformers, check all that must hold, and write the pages of which work.

Each model is built with random weights and sliced at several rates; nothing is downloaded. What was found is kept, one
line for each model, so that a run that was interrupted goes on where it was. Without names, all models are checked; it
takes some hours, and 10 GiB of memory for the largest. The exit status is 1 if a model is sliced wrongly, or if one of
those that were named does not work.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import torch

from heterofl_flwr.core.formatting import markdown
from heterofl_flwr.runs.files import append_line, write_atomic
from simulations.bench.measure import describe_machine
from simulations.model_zoo import models
from simulations.model_zoo.check import MOST_DIFFERENT, RATES
from simulations.model_zoo.models import DOUBLE, Finding
from simulations.model_zoo.sources import SOURCES, version_of
from simulations.program import chosen, parser_of, status_of

VERDICTS = ("exact", "unproven", "refused", "wrong", "not built")
_INTRODUCTION = """# Models that are known to work

Which models work for federated learning with clients of unequal size: those of torchvision, timm and transformers, by
a rule for each package, sliced by `elastic`, with random weights. A command writes these pages; do not edit them:

```bash
python -m simulations.model_zoo --out docs/reference
```

{counts}
- *exact*: `elastic` slices the model, and all of the following holds.
- *unproven*: all holds but the last, because no rule says what a slice should compute.
- *refused*: `elastic` raises an error that says why, before any training.
- *wrong*: `elastic` accepts the model, and then something does not hold.
- *not built*: the rule makes no model that runs by itself, or only larger ones. These were not checked.

What holds of an exact model at the rates {rates}:

1. the slice is built, and trains; what it sends is averaged, and the mean is loaded again;
2. its weights are exactly those that its `Plan` names; at rate 1 weights and output are the model's own, bit for bit;
3. nothing of the model given is changed;
4. it computes what the full model computes without all that the slice lacks. For this the full model is run beside it
   with zeros there, and a mask beside every tensor that says which entries the slice has. What counts entries (a mean,
   a norm, a softmax, a width in the temperature of attention) counts those of the mask.

The largest difference in 4, as a part of the difference that two inputs make, is {exact:.0e} in double precision. In
single precision it may be {single:.0e}; so are models checked that have more than {many} million parameters (but for
EfficientNets and VGGs, in which at small rates little of the input arrives) or that do not run in double precision.
`elastic` itself took {seconds:.0f} seconds for the slowest model.

The rules:

{rules}
timm and transformers are needed for this command alone: `pip install timm transformers`.

Made with seed {seed} on: {made}.
"""
_PAGE = """# Models of {source}

Which models of {source} {version} work for federated learning with clients of unequal size, one by one;
[Models that are known to work](models.md) says what was checked. The share is that of the parameters which a slice of
rate 0.5 has: about a quarter, and more where inputs, outputs or embeddings have a large part.
"""


def pages(findings: Sequence[Finding], sources: Sequence[str], seed: int) -> dict[str, str]:
    """Return the pages by their file names; findings come in the order of the tables."""
    counts = Counter((one.source, one.verdict) for one in findings)
    exact = [one for one in findings if one.verdict == "exact"]
    rows = []
    for source in sources:
        families = {one.family for one in exact if one.source == source}
        numbers = [*(counts[source, verdict] for verdict in VERDICTS), len(families)]
        rows.append([f"[{source}](models-{source}.md)", *map(str, numbers)])
    introduction = _INTRODUCTION.format(
        counts=_table(["package", *VERDICTS, "families of exact ones"], rows),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        exact=max((one.difference for one in exact if one.double), default=0),
        single=max(MOST_DIFFERENT.values()),
        many=DOUBLE // 1_000_000,
        seconds=max((one.seconds for one in findings), default=0),
        rules="".join(f"- {one} {version_of(one)}: {SOURCES[one].rule}\n" for one in sources),
        seed=seed,
        made=_made(findings),
    )
    named = {f"models-{one}.md": _page(one, [own for own in findings if own.source == one]) for one in sources}
    return {"models.md": introduction, **named}


def _page(source: str, findings: Sequence[Finding]) -> str:
    """Return the page of one package: two models in a row, and reasons one by one."""
    parts = [_PAGE.format(source=source, version=version_of(source))]
    for verdict in VERDICTS:
        own = [one for one in findings if one.verdict == verdict]
        if own and verdict in ("exact", "unproven"):
            cells = [[f"`{one.name}`", one.family, f"{one.half:.0%}{' *' if one.large else ''}"] for one in own]
            pairs = [list(chain(*cells[start : start + 2])) for start in range(0, len(cells), 2)]
            parts.append(f"## {len(own)} {verdict}\n\n" + _table(["model", "family", "share"] * 2, pairs))
        elif own and verdict == "not built":
            parts.append(f"## {len(own)} {verdict}\n\n" + ", ".join(f"`{one.name}`" for one in own) + "\n")
        elif own:
            reasons = [[f"`{one.name}`", one.family, _cell(one.reason)] for one in own]
            parts.append(f"## {len(own)} {verdict}\n\n" + _table(["model", "family", "layer and reason"], reasons))
    notes = [[f"`{one.name}`", _cell(one.large or one.unproven)] for one in findings if one.large or one.unproven]
    if notes:
        parts.append("## Notes\n\n*: the slice is more than 1.5 times as large as it might be.\n\n")
        parts[-1] += _table(["model", "why"], notes)
    return "\n".join(parts)


def _cell(text: str, most: int = 200) -> str:
    """Return a text for a cell of a table: its beginning, on one line."""
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0]} ..."


def _made(findings: Sequence[Finding]) -> str:
    """Return on which machines, at which commits and when the findings were made."""
    commits: dict[str, set[str]] = {}
    for finding in findings:
        machine, _, commit = finding.made.partition("; commit ")
        commits.setdefault(machine, set()).add(commit)
    return "; ".join(f"{machine}; at {', '.join(sorted(own))}" for machine, own in sorted(commits.items()))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return markdown(heads, ([*row, *[""] * (len(heads) - len(row))] for row in rows)) + "\n"


def line(finding: Finding) -> str:
    """Return one line about a finding, for a terminal."""
    if finding.verdict not in ("exact", "unproven"):
        return f"{finding.name:<20} {finding.verdict}: {finding.reason}"
    measured = f"trace {finding.seconds:.1f} s, difference {finding.difference:.0e}"
    number = finding.parameters[1.0]
    return f"{finding.name:<20} {finding.verdict}: {number:,} parameters, {finding.half:.1%} at 0.5; {measured}"


PROGRAM = "simulations.model_zoo"


def main(arguments: list[str] | None = None) -> int:
    own = parser_of(PROGRAM, __doc__)
    own.add_argument("names", nargs="*", help="models to check, as package:model; without any, all of them")
    own.add_argument("--source", action="append", choices=SOURCES, help="a package to take; without any, all of them")
    own.add_argument("--out", type=Path, help="write the pages to this folder; give no names, for whole ones")
    findings = "where to keep what was found, and to read what is there already (%(default)s)"
    own.add_argument("--findings", type=Path, default=Path("runs/zoo/findings.jsonl"), help=findings)
    own.add_argument("--seed", type=int, default=0, help="of the weights and the images (%(default)s)")
    options = own.parse_args(arguments)
    return status_of(PROGRAM, lambda: run(options))


def run(options: argparse.Namespace) -> int:
    sources = options.source or list(SOURCES)
    every = [f"{source}:{name}" for source in sources for name in SOURCES[source].names()]
    keys = chosen("model", options.names, every)
    kept = models.read(options.findings)
    made = f"{time.strftime('%Y-%m-%d')}, {describe_machine()}"
    torch.set_num_threads(1)  # so that runs are comparable, and repeatable
    print(made, flush=True)
    for number, key in enumerate(keys, 1):
        took, started = "found before", time.monotonic()
        if key not in kept:
            kept[key] = models.find(key, made, options.seed)
            append_line(options.findings, json.dumps(asdict(kept[key])))
            took = f"{time.monotonic() - started:.0f} s"
        print(f"[{number}/{len(keys)}] {line(kept[key])}; {took}", flush=True)
    found = [kept[key] for key in keys]
    counts = Counter(finding.verdict for finding in found)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS))
    for name, page in pages(found, sources, options.seed).items() if options.out else ():
        write_atomic(options.out / name, page.encode())
        print(f"wrote {options.out / name}")
    return int(counts["wrong"] > 0 or (bool(options.names) and counts["exact"] < len(found)))


if __name__ == "__main__":
    sys.exit(main())
