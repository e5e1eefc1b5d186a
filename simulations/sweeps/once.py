"""A job from its configuration to its end, once."""

from collections.abc import Iterable

from heterofl_flwr.app.launch import gpus
from heterofl_flwr.app.launch.preflight import LaunchNote, check_folder, check_share, check_task
from heterofl_flwr.app.launch.request import Flat, Request, Share
from heterofl_flwr.app.launch.running import run_request
from heterofl_flwr.app.task import task_of
from heterofl_flwr.settings import to_flat
from simulations.sweeps.job import Job, Launch
from simulations.sweeps.lock import held
from simulations.sweeps.stage import is_done, kept, take_up

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
