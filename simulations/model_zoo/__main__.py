"""Slice models of torchvision, timm and transformers, check the slices, and write a page on the models that fail.

Each model is built with random weights and sliced at several rates; nothing is downloaded. The finding of each model is
stored as a line of a file, so an interrupted run can continue. Without names, all models are checked, which takes some
hours, and 10 GiB of memory for the largest. The exit code is 1 if a model is sliced wrongly, or if a named model does
not work.
"""

import argparse
import json
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from heterofl_flwr.common.files import append_line, write_atomic
from heterofl_flwr.core.formatting import markdown, render
from simulations.bench.measure import describe_machine
from simulations.model_zoo import models
from simulations.model_zoo.check import MOST_DIFFERENT, RATES
from simulations.model_zoo.models import DOUBLE, Finding
from simulations.model_zoo.sources import SOURCES, version_of
from simulations.program import chosen, parser_of, start, text_beside

VERDICTS = ("exact", "unproven", "refused", "wrong", "not built")


def page(findings: Sequence[Finding], sources: Sequence[str], seed: int) -> str:
    """Return the page; ``findings`` are in the order of its tables."""
    counts = Counter((one.source, one.verdict) for one in findings)
    exact = [one for one in findings if one.verdict == "exact"]
    rows = []
    for source in sources:
        families = {one.family for one in exact if one.source == source}
        rows.append([source, *(str(counts[source, verdict]) for verdict in VERDICTS), str(len(families))])
    return text_beside(__file__, "page.md").format(
        counts=markdown(["package", *VERDICTS, "families of exact ones"], rows),
        failing=_failing(findings),
        missing="".join(f"- {source}: {names}\n" for source in sources if (names := _missing(findings, source))),
        rates=", ".join(f"{rate:g}" for rate in RATES),
        exact=max((one.difference for one in exact if one.double), default=0),
        single=max(MOST_DIFFERENT.values()),
        many=DOUBLE // 1_000_000,
        seconds=max((one.seconds for one in findings), default=0),
        rules="".join(f"- {one} {version_of(one)}: {SOURCES[one].rule}\n" for one in sources),
        seed=seed,
        made=_made(findings),
    )


def _failing(findings: Sequence[Finding]) -> str:
    """Return the table of checked models that do not work, or whose slices are too large."""
    rows = []
    for one in findings:
        why = one.large or one.unproven or one.reason
        if why and one.verdict != "not built":
            short = textwrap.shorten(why.replace("|", "/"), 204, placeholder=" ...")
            rows.append([one.source, f"`{one.name}`", "large" if one.large else one.verdict, short])
    return markdown(["package", "model", "verdict", "layer and reason"], rows)


def _missing(findings: Sequence[Finding], source: str) -> str:
    return ", ".join(f"`{one.name}`" for one in findings if one.source == source and one.verdict == "not built")


def listed(findings: Sequence[Finding]) -> str:
    """Return all models as CSV, with verdict and the percentage of parameters in a slice of rate 0.5."""
    rows = []
    for one in findings:
        percent = f"{100 * one.half:.0f}" if one.verdict in ("exact", "unproven") else ""
        rows.append([one.source, one.name, one.family, one.verdict, percent])
    return render(["package", "model", "family", "verdict", "percent at rate 0.5"], rows, "csv") + "\n"


def _made(findings: Sequence[Finding]) -> str:
    """Return the machines, commits and dates of the findings."""
    commits: dict[str, set[str]] = {}
    for finding in findings:
        machine, _, commit = finding.made.partition("; commit ")
        commits.setdefault(machine, set()).add(commit)
    return "; ".join(f"{machine}; at {', '.join(sorted(own))}" for machine, own in sorted(commits.items()))


def line(finding: Finding) -> str:
    """Return a line about a finding for the terminal."""
    if finding.verdict not in ("exact", "unproven"):
        return f"{finding.name:<20} {finding.verdict}: {finding.reason}"
    measured = f"trace {finding.seconds:.1f} s, difference {finding.difference:.0e}"
    number = finding.parameters[1.0]
    return f"{finding.name:<20} {finding.verdict}: {number:,} parameters, {finding.half:.1%} at 0.5; {measured}"


def main(arguments: list[str] | None = None) -> int:
    own = parser_of("simulations.model_zoo", __doc__)
    own.add_argument("names", nargs="*", help="models to check, as package:model; without any, all of them")
    own.add_argument("--source", action="append", choices=SOURCES, help="a package to take; without any, all of them")
    own.add_argument("--out", type=Path, help="write the page and the list of all models there; give no names then")
    kept = "file of findings; models with one are not checked again (%(default)s)"
    own.add_argument("--findings", type=Path, default="runs/zoo/findings.jsonl", help=kept)
    own.add_argument("--seed", type=int, default=0, help="of the weights and the images (%(default)s)")
    return start(own, run, arguments)


def run(options: argparse.Namespace) -> int:
    sources = options.source or list(SOURCES)
    known = [f"{source}:{name}" for source in sources for name in SOURCES[source].names()]
    keys = chosen("model", options.names, known)
    kept = models.read(options.findings)
    made = f"{time.strftime('%Y-%m-%d')}, {describe_machine()}"
    torch.set_num_threads(1)  # so that runs can be repeated and compared
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
    if options.out:
        for name, text in (("models.md", page(found, sources, options.seed)), ("models.csv", listed(found))):
            write_atomic(options.out / name, text.encode())
            print(f"wrote {options.out / name}")
    return int(counts["wrong"] > 0 or (bool(options.names) and counts["exact"] < len(found)))


if __name__ == "__main__":
    raise SystemExit(main())
