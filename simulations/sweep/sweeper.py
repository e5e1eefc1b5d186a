"""Hydra's part of a sweep: which jobs there are, and the launcher for those that are not done."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from textwrap import shorten

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from heterofl_flwr.app.cli.profile import printed
from heterofl_flwr.app.launch.running import LOG, RunError
from heterofl_flwr.core import formatting
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.settings import Flat
from simulations.sweep.cost import cost_if_known, ratio, seconds_of_jobs
from simulations.sweep.job import Job
from simulations.sweep.plan import Planned, plan
from simulations.sweep.state import BEGUN, DONE, HeldError, check_jobs, rounds_of, seconds_of, stage_of

TARGET = "hydra_plugins.heterofl.JobSweeper"
SKIPPED, ELSEWHERE, FAILED = "skipped", "elsewhere", "failed"
LONGEST_CAUSE = 300  # characters in the list at the end

ONE_BY_ONE = "basic"
"""Hydra's own launcher, which runs jobs in this process."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended: ``done``, ``skipped``, ``elsewhere`` or ``failed``, and why."""

    status: str
    cause: str = ""


class JobSweeper(Sweeper):
    """Runs the jobs of experiments and of the command line, each once, whatever became of the others."""

    def __init__(self, params: Mapping[str, Mapping[str, object]], mixes: Mapping[str, str]) -> None:
        del params, mixes  # ``plan`` reads them where they are composed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives."""
        self._loader, self._master = hydra_context.config_loader, config
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=partial(_ending_of, task_function), config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """List the jobs, or run those that are not done; raise ``RunError`` if any of them failed."""
        planned = plan(self._loader, self._master, arguments)
        jobs = {name: own.job for name, own in planned.items()}
        stages = {name: stage_of(job) for name, job in jobs.items()}
        todo = [name for name, stage in stages.items() if stage != DONE]
        dry = bool(self._master["dry"])
        if not dry:
            check_jobs(jobs[name] for name in todo)
        times = _times(jobs, stages) if dry or len(todo) > 1 else {}
        if dry:
            print(listing([Listed(job, stages[name], times.get(name)) for name, job in jobs.items()]))
            return
        print(f"{count(len(jobs), 'job')} in {next(iter(jobs.values())).folder}, {len(jobs) - len(todo)} done before")
        endings = self._launch({name: planned[name] for name in todo}, times)
        for name, ending in endings.items():
            if ending.status == ELSEWHERE and stage_of(jobs[name]) != DONE:
                print(f"not done here: {name} {ending.cause}")
        print(f"{sum(stage_of(job) == DONE for job in jobs.values())} of {count(len(jobs), 'job')} done")
        _check(endings)

    def _launch(self, planned: Mapping[str, Planned], times: Mapping[str, float]) -> dict[str, Ending]:
        """Run jobs; return how each ended."""
        if self._master.hydra.runtime.choices["hydra/launcher"] != ONE_BY_ONE:
            results = self._launcher.launch([list(own.row) for own in planned.values()], initial_job_idx=0)
            return {name: result.return_value for name, result in zip(planned, results, strict=True)}
        progress, endings = Progress(list(planned), times), {}
        for number, (name, own) in enumerate(planned.items()):
            changes = described(own.job.changes)
            print(progress.begin(name) + (f"; {changes}" if changes else ""), flush=True)
            ending: Ending = self._launcher.launch([list(own.row)], initial_job_idx=number)[0].return_value
            if ending.cause:
                print(f"{ending.status}: {ending.cause}", flush=True)
            progress.end(name, good=ending.status == DONE)
            endings[name] = ending
        return endings


def register() -> None:
    """Let Hydra find the sweeper: it makes only what has a name in ``hydra_plugins``, where programs keep nothing."""
    Plugins.instance().class_name_to_class[TARGET] = JobSweeper


def _ending_of(task: TaskFunction, config: DictConfig) -> Ending:
    """Run a job; whatever it raises is how it ended, for it shall not end the others."""
    try:
        return Ending(DONE if task(config) else SKIPPED)
    except HeldError as error:
        return Ending(ELSEWHERE, str(error))
    except Exception as error:
        return Ending(FAILED, str(error) if isinstance(error, HeteroFLError) else f"{type(error).__name__}: {error}")


def _times(jobs: Mapping[str, Job], stages: Mapping[str, str]) -> dict[str, float]:
    """Return how long jobs take from where they are, or took if they are done; what is not known is left out."""
    ended = {name: seconds_of(job) for name, job in jobs.items() if stages[name] == DONE}
    begun = {
        name: min(rounds_of(job), job.settings.num_rounds - 1)  # the last one is run again if its models are not there
        for name, job in jobs.items()
        if stages[name] == BEGUN
    }
    return seconds_of_jobs(jobs, ended, begun)


def _check(endings: Mapping[str, Ending]) -> None:
    """Raise if any job failed."""
    failed = {name: ending.cause for name, ending in endings.items() if ending.status == FAILED}
    if failed:
        causes = [f"  {name}: {shorten(cause, LONGEST_CAUSE, placeholder=' ...')}" for name, cause in failed.items()]
        where = f"the whole log of each: {LOG} in its folder"
        raise RunError("\n".join([f"{len(failed)} of {count(len(endings), 'job')} failed:", *causes, where]))


class Progress:
    """Says which job of how many is next, and how long all of them take, which each end tells better."""

    def __init__(self, names: Sequence[str], expected: Mapping[str, float]) -> None:
        self._left = list(names)
        self._number = len(names)
        self._expected = expected
        self._start = self._last = time.monotonic()
        self._ended: list[tuple[float, float]] = []

    def begin(self, name: str) -> str:
        """Return a line about the job that begins."""
        number = self._number - len(self._left) + 1
        parts = [f"job {number} of {self._number}: {name}"]
        if number > 1:
            parts.append(f"{duration(self._last - self._start)} so far")
        if all(one in self._expected for one in self._left):
            stretch = ratio(self._ended)
            parts.append(f"about {duration(stretch * sum(self._expected[one] for one in self._left))} left")
        return ", ".join(parts)

    def end(self, name: str, *, good: bool) -> None:
        """Take note that a job has ended; one that failed tells nothing about the others."""
        before, self._last = self._last, time.monotonic()
        if good and name in self._expected:
            self._ended.append((self._expected[name], self._last - before))
        self._left.remove(name)


def duration(seconds: float) -> str:
    """Return a time as ``12 s``, ``1:02:03`` or ``3 days, 1:02:03``."""
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


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
    cost = cost_if_known(one.job)
    costs = ("?", "?") if cost is None else (printed(cost.parameters), f"{cost.macs:.2e}")
    seconds = "?" if one.seconds is None else duration(one.seconds)
    stage = f"round {rounds_of(one.job)} of {one.job.settings.num_rounds}" if one.stage == BEGUN else one.stage
    return (one.job.name, *costs, seconds, stage, described(one.job.changes))
