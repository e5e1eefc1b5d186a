"""The jobs of a sweep as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heterofl_flwr.app.cli.profile import printed
from heterofl_flwr.core import formatting
from heterofl_flwr.settings import Flat
from simulations.sweeps.job import Job
from simulations.sweeps.progress import duration
from simulations.sweeps.stage import BEGUN, DONE, rounds_of
from simulations.sweeps.work import work_if_known

HEADER = ("job", "parameters", "MACs", "time", "state", "unlike the published settings")


@dataclass(frozen=True, slots=True)
class Listed:
    """A job of a sweep, how far it is, and, if that is known, how long it takes from there, or took if it is done."""

    job: Job
    stage: str
    seconds: float | None


def listing(jobs: Sequence[Listed]) -> str:
    """Return a table of the jobs and a line about all of them."""
    lines = [formatting.render(HEADER, [_row(one) for one in jobs], "table"), ""]
    left = [one for one in jobs if one.stage != DONE]
    known = [one.seconds for one in left if one.seconds is not None]
    lines.append(
        f"{count(len(jobs), 'job')}, {len(jobs) - len(left)} of them done; the others take about "
        f"{duration(sum(known))}{'' if len(known) == len(left) else f', without {len(left) - len(known)} unknown'}"
    )
    return "\n".join(lines)


def count(number: int, noun: str) -> str:
    """Return a number of things in words."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def described(changes: Mapping[str, Flat]) -> str:
    """Return settings in a line."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def _row(one: Listed) -> tuple[str, ...]:
    work = work_if_known(one.job)
    costs = ("?", "?") if work is None else (printed(work.parameters), f"{work.macs:.2e}")
    seconds = "?" if one.seconds is None else duration(one.seconds)
    stage = f"round {rounds_of(one.job)} of {one.job.settings.num_rounds}" if one.stage == BEGUN else one.stage
    return (one.job.name, *costs, seconds, stage, described(one.job.changes))
