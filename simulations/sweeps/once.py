"""A job from its configuration to its end, once."""

import json
import logging
import time
from pathlib import Path

from heterofl_flwr.app.commands.run import LAUNCH
from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.request import Flat, Request, Share
from heterofl_flwr.app.launch.session import run_session
from heterofl_flwr.errors import HeteroFLError
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
    note = job.path / LAUNCH
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"clients": job.launch.clients}), encoding="utf-8")
    return Request(config=config, out=job.path, clients=job.launch.clients, share=_share(job.launch, config))


def _share(launch: Launch, config: dict[str, Flat]) -> Share:
    """Return what each client gets of the machine."""
    if launch.gpus is not None:
        return Share(cpus=launch.cpus, gpus=launch.gpus, at_once=launch.parallel)
    if launch.grid == "local" or not gpus.devices() or config["engine.device"] == "cpu":
        return Share(cpus=launch.cpus, at_once=launch.parallel)
    clients = launch.parallel or launch.clients
    return gpus.plan(gpus.measure(config), clients=clients, cores=gpus.cores(), cpus=launch.cpus)
