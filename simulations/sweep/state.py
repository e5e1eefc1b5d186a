"""How far a job has come, and how it goes on."""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.preflight import LaunchNote, check_folder, check_share, check_task
from heterofl_flwr.app.launch.request import Request, Share
from heterofl_flwr.app.launch.running import run_request
from heterofl_flwr.app.task import load_task
from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import Flat, to_flat
from simulations.sweep.job import INCIDENTAL, KEPT, Job, Launch

NEW, BEGUN, DONE, BLOCKED = "new", "begun", "done", "blocked"


def stage_of(job: Job) -> str:
    """Return ``new``, ``begun``, ``done`` or, where its folder cannot be used, ``blocked``."""
    try:
        if is_done(job):
            return DONE
    except HeteroFLError:  # running the job will say why
        return BLOCKED
    return BEGUN if _has_checkpoint(job) else NEW


def is_done(job: Job) -> bool:
    """Return whether the job's folder holds all of its run; refuse a folder with another run."""
    folder = RunFolder(job.path)
    if not folder.started:
        return False
    stored, config = folder.settings(), job.config
    keys = [key for key in config if key in stored and key not in INCIDENTAL and stored[key] != config[key]]
    if keys:
        how = ", ".join(f"{key} was {stored[key]!r} and is {config[key]!r}" for key in keys)
        raise ConfigError(f"{job.path} holds another run: {how}; choose another folder, or remove this one")
    return folder.about().get("finished") is not None


def seconds_of(job: Job) -> float:
    """Return how long the rounds in the job's folder took."""
    return sum(record.seconds for record in RunFolder(job.path).history())


def rounds_of(job: Job) -> int:
    """Return how many rounds the job's folder has."""
    return len(RunFolder(job.path).history())


def take_up(job: Job) -> bool:
    """Make the job's folder ready; return whether the run goes on from a checkpoint."""
    folder, rounds = RunFolder(job.path), job.settings.num_rounds
    if _has_checkpoint(job) and folder.load_checkpoint().server_round >= rounds:
        # It ended after its last round and before its models were written: that round is run again.
        folder.rewind(rounds - 1)
    if _has_checkpoint(job):
        return True
    if job.path.exists():
        shutil.rmtree(job.path)
    return False


def kept(job: Job) -> dict[str, Flat]:
    """Return what a run that goes on takes from its folder, though it changes no result."""
    stored = RunFolder(job.path).settings()
    return {key: cast("Flat", stored[key]) for key in KEPT if key in stored}


def _has_checkpoint(job: Job) -> bool:
    folder = RunFolder(job.path)
    return folder.started and folder.has_checkpoint


class HeldError(HeteroFLError):
    """Another process has the lock."""


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock. Raise ``HeldError`` where another process has it.

    The system releases it when its process ends in any way, so a lock is never stale. The file stays: to remove it
    would let two processes hold locks on two files of one name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise HeldError(f"runs in {file.read().strip() or 'another process'}") from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


LOCKS = ".locks"


def run_once(job: Job) -> bool:
    """Run a job, or go on with it, if it is not done; return whether there was anything to do.

    Raises
    ------
    HeldError
        If another process runs it.
    RunError
        If it ended before its end.
    """
    with held(job.folder / LOCKS / job.name):
        if is_done(job):
            return False
        run_request(request_of(job, resume=take_up(job)))
    return True


def request_of(job: Job, *, resume: bool) -> Request:
    """Return the run that is to be made; note in its folder what ``heterofl run --resume`` needs."""
    config = job.config | {"run.resume": resume} | (kept(job) if resume else {})
    LaunchNote(job.launch.clients, config).write(job.path)
    return Request(
        config=config, out=job.path, clients=job.launch.clients, share=_share(job.launch, config), grid=job.launch.grid
    )


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
        check_task(load_task(job.config), job.launch.clients)


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
