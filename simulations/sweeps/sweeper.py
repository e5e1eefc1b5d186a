"""Hydra's part of a sweep: which jobs there are, and the launcher for those that are not done."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from textwrap import shorten

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from heterofl_flwr.app.launch.running import LOG, RunError
from heterofl_flwr.errors import HeteroFLError
from simulations.sweeps.job import Job
from simulations.sweeps.listing import Listed, count, described, listing
from simulations.sweeps.lock import HeldError
from simulations.sweeps.once import check_jobs
from simulations.sweeps.plan import Planned, plan
from simulations.sweeps.progress import Progress
from simulations.sweeps.speed import seconds_of_jobs
from simulations.sweeps.stage import BEGUN, DONE, rounds_of, seconds_of, stage_of

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
    """Runs the jobs of experiments and of the command line, each once, whatever became of the others.

    Parameters
    ----------
    params : Mapping[str, Mapping[str, object]]
        Blocks of values by name: all combinations within a block, one block after the other.
    mixes : Mapping[str, str]
        Lists that blocks refer to.
    """

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
