"""What must hold of two conversions: one level is FedAvg, and noise for privacy does not come twice."""

from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file

from heterofl_flwr.errors import HeteroFLError
from simulations.conversions.edits import Edit
from simulations.conversions.examples import EXAMPLES, MIX, Example
from simulations.conversions.play import MODEL
from simulations.conversions.trial import job_of, made, run

TOLERANCE = 1e-6
"""How far a parameter may be from FedAvg's."""


def check_fedavg(checkout: Path, work: Path, root: str) -> float:
    """Return the largest difference of a parameter after three rounds, with one level and weights by examples."""
    example = named("quickstart-pytorch")
    all_alike = Edit(f"{example.package}/server_app.py", f'"{MIX}"', '"a1", weights="examples"')
    states = []
    for name, edits in (("fedavg", []), ("one-level", [*example.edits, all_alike])):
        folder, _ = made(example, checkout, work / example.short / f"equal-{name}", edits)
        job = job_of(example, root)
        # Small steps, so that what differs by rounding does not grow.
        run(example, folder, replace(job, rows=1000, config={"learning-rate": 0.01}))
        states.append(load_file(folder / MODEL))
    original, ours = states
    return max(float((original[name] - ours[name]).abs().max()) for name in original)


def check_noise(checkout: Path, work: Path, root: str) -> int:
    """Return how many replies of two private runs from the same model are the same, bit by bit."""
    example = named("opacus")
    replies = []
    for number in ("first", "second"):
        folder, _ = made(example, checkout, work / example.short / f"private-{number}", example.edits)
        job = replace(job_of(example, root, repeatable=False), rows=200, config={"num-server-rounds": 1})
        replies.append(run(example, folder, job).replies)
    if not all(replies):
        raise HeteroFLError(f"{example.short}: no client sent a reply; its log is under {work / example.short}")
    return len(replies[0].items() & replies[1].items())


def named(short: str) -> Example:
    return next(example for example in EXAMPLES if example.short == short)
