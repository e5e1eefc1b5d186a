"""How far a job has come, and how it goes on."""

import shutil
from typing import cast

from heterofl_flwr.errors import ConfigError, HeteroFLError
from heterofl_flwr.report import RunFolder
from heterofl_flwr.runs.checkpoint import has_checkpoint
from heterofl_flwr.settings import Flat
from simulations.sweeps.job import INCIDENTAL, KEPT, Job

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
    return RunFolder(job.path).started and has_checkpoint(job.path / "checkpoint")
