"""A job from its configuration to its end, once."""

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.request import Flat, Request, Share
from heterofl_flwr.app.launch.session import run_session
from heterofl_flwr.app.launch_note import LaunchNote
from heterofl_flwr.app.preflight import check_folder, check_share, check_task
from heterofl_flwr.app.task import task_of
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.settings import to_flat
from simulations.sweeps.job import Job, Launch
from simulations.sweeps.lock import held
from simulations.sweeps.stage import is_done, kept, take_up

LOCKS = ".locks"

RAYS_LOG = Path("logs", "superlink.log")
AFTERMATH = 8.0
"""Seconds in which the launcher's guard ends the processes of a killed run, which write to the same folder."""


class FailedError(HeteroFLError):
    """A job did not do all that it was to do."""


def run_once(job: Job) -> bool:
    """Run a job, or go on with it, if it is not done; return whether there was anything to do.

    Raises
    ------
    HeldError
        If another process runs it.
    FailedError
        If it ended before its end.
    """
    with held(job.folder / LOCKS / job.name) as killed:
        if is_done(job):
            return False
        if killed and (job.path / RAYS_LOG).exists():
            time.sleep(AFTERMATH)
        request = request_of(job, resume=take_up(job))
        # The app points the package's log to where Flower's goes, once in a process; each job has a file of its own.
        logging.getLogger("heterofl_flwr").handlers.clear()
        outcome = run_session(request, grid=job.launch.grid, log=False)
    if not outcome.good:
        raise FailedError("\n".join([outcome.cause, *(f"    {line}" for line in outcome.trace)]))
    return True


def request_of(job: Job, *, resume: bool) -> Request:
    """Return the run that is to be made; note in its folder what ``heterofl run --resume`` needs."""
    config = job.config | {"run.resume": resume} | (kept(job) if resume else {})
    LaunchNote(job.launch.clients, config).write(job.path)
    return Request(config=config, out=job.path, clients=job.launch.clients, share=_share(job.launch, config))


def check_jobs(jobs: Iterable[Job]) -> None:
    """Raise what would end jobs before their first round: one of each kind is checked, which loads its data."""
    kinds: dict[tuple[object, ...], Job] = {}
    for job in jobs:
        flat, launch = to_flat(job.settings), job.launch
        told = (flat[key] for key in ("data.name", "data.root", "data.split", "model.name", "server.strategy"))
        kinds.setdefault((*told, launch.clients, launch.cpus, launch.gpus, job.folder), job)
    for job in kinds.values():
        check_folder(job.folder, "folder")
        check_share(_asked_share(job.launch))
        check_task(task_of(job.config), job.launch.clients)


def _asked_share(launch: Launch) -> Share:
    """Return what each client gets of the machine, as far as that was said."""
    return Share(cpus=launch.cpus, gpus=launch.gpus or 0.0, at_once=launch.parallel)


def _share(launch: Launch, config: dict[str, Flat]) -> Share:
    """Return what each client gets of the machine; its share of a GPU is measured where none was said."""
    no_gpu = launch.grid == "local" or not gpus.devices() or config["engine.device"] == "cpu"
    if launch.gpus is not None or no_gpu:
        return _asked_share(launch)
    clients = launch.parallel or launch.clients
    return gpus.plan(gpus.measure(config), clients=clients, cores=gpus.cores(), cpus=launch.cpus)
