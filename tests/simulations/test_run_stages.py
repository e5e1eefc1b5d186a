"""How far a job is, how it goes on, and that two processes never have the same one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from heterofl_flwr.app.launch.gpus import Measured
from heterofl_flwr.app.launch.preflight import LaunchNote
from heterofl_flwr.app.launch.request import Share
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import Checkpoint, RunFolder
from simulations.sweep import state as once
from simulations.sweep.job import Job
from simulations.sweep.state import HeldError, held, is_done, request_of, rounds_of, seconds_of, stage_of, take_up
from tests.simulations.sweeping import SHRUNKEN, planned

ROOT = Path(__file__).parents[2]
STATE = {"weight": torch.zeros(1)}


@pytest.fixture
def job(tmp_path) -> Job:
    (own,) = planned(f"folder={tmp_path}", *SHRUNKEN, "num-rounds=3").values()
    return own.job


def ran(job: Job, rounds: int, *, checkpoints: int | None = None, finished: bool = False, **changed) -> None:
    """Leave what a run leaves that has come so far."""
    folder = RunFolder(job.path)
    folder.start(job.config | {key.replace("_", "-"): value for key, value in changed.items()})
    for number in range(1, rounds + 1):
        folder.append(RoundRecord(server_round=number, seconds=2.0, learning_rate=0.1, rates={0: 1.0}))
        if number <= (rounds if checkpoints is None else checkpoints):
            folder.save_checkpoint(Checkpoint(server_round=number, state=STATE))
    folder.note(finished="now" if finished else None)


def test_a_job_is_new_then_begun_then_done(job):
    assert (stage_of(job), is_done(job)) == ("new", False)
    ran(job, 2)
    assert (stage_of(job), rounds_of(job), seconds_of(job)) == ("begun", 2, 4.0)
    RunFolder(job.path).note(finished="now")
    assert (stage_of(job), is_done(job)) == ("done", True)


def test_a_run_without_a_checkpoint_is_made_anew(job):
    ran(job, 1, checkpoints=0)
    (job.path / "logs").mkdir()
    assert stage_of(job) == "new"
    assert take_up(job) is False
    assert not job.path.exists()
    assert take_up(job) is False


def test_a_run_with_a_checkpoint_goes_on_from_it(job):
    ran(job, 2, checkpoints=1)
    assert take_up(job) is True
    assert RunFolder(job.path).load_checkpoint().server_round == 1


def test_a_run_that_ended_before_its_models_were_written_makes_its_last_round_again(job):
    ran(job, 3)
    assert stage_of(job) == "begun"
    assert take_up(job) is True
    assert RunFolder(job.path).load_checkpoint().server_round == 2
    assert rounds_of(job) == 2


def test_with_no_earlier_checkpoint_it_is_made_anew(tmp_path):
    (own,) = planned(f"folder={tmp_path}", *SHRUNKEN, "num-rounds=1").values()
    ran(own.job, 1)
    assert take_up(own.job) is False
    assert not own.job.path.exists()


def test_a_folder_with_another_run_is_told_and_left_alone(job):
    ran(job, 3, finished=True, num_rounds=9, seed=4)
    assert stage_of(job) == "blocked"
    with pytest.raises(ConfigError, match=r"holds another run: .*num-rounds was 9 and is 3.*choose another folder"):
        is_done(job)
    with pytest.raises(ConfigError):
        once.run_once(job)
    assert rounds_of(job) == 3


def test_what_changes_no_result_stays_as_the_folder_has_it(job):
    ran(job, 2, **{"run.checkpoint_every": 2, "engine.timeout": 5.0, "data.root": "/before", "engine.device": "cuda"})
    config = request_of(job, resume=True).config
    assert (config["run.checkpoint-every"], config["engine.timeout"]) == (2, 5.0)
    assert (config["data.root"], config["engine.device"]) == (job.config["data.root"], "auto")
    assert config["run.resume"] is True
    assert request_of(job, resume=False).config == job.config


def test_the_folder_knows_its_clients_for_heterofl_run(job):
    config = request_of(job, resume=False).config
    assert LaunchNote.read(job.path) == LaunchNote(20, config)


def test_without_a_gpu_a_job_computes_on_none(tmp_path):
    def device(*overrides: str) -> object:
        (own,) = planned(f"folder={tmp_path}", *overrides).values()
        return own.job.config["engine.device"]

    assert (device(), device("engine.gpus=0"), device("engine.gpus=0.5")) == ("auto", "cpu", "auto")
    assert device("engine.gpus=0", "engine.device=mps") == "mps"


def test_a_held_lock_names_its_holder(tmp_path):
    path = tmp_path / "locks" / "one"
    with held(path):
        with pytest.raises(HeldError, match=f"runs in process {os.getpid()} on "), held(path):
            pass
        with held(tmp_path / "locks" / "other"):
            pass
    with held(path):
        pass


def test_the_lock_of_a_process_that_was_killed_is_taken_over(tmp_path):
    path = tmp_path / "one"
    code = (
        "import os, pathlib, signal, sys\nfrom simulations.sweep.state import held\n"
        "with held(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT).returncode == -9
    assert path.read_text().startswith("process ")
    with held(path):
        assert f"process {os.getpid()} on" in path.read_text()


def test_clients_get_what_the_job_says_and_gpus_are_measured_on_ray_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(once.gpus, "devices", lambda: 1)
    monkeypatch.setattr(once.gpus, "cores", lambda: 8)
    monkeypatch.setattr(once.gpus, "measure", lambda config: Measured(1, 10 * 1024**3, {1.0: 2 * 1024**3}))

    def share(*overrides: str) -> Share:
        (own,) = planned(f"folder={tmp_path}", *overrides).values()
        return request_of(own.job, resume=False).share

    assert share("engine.cpus=2", "engine.parallel=3") == Share(cpus=2, at_once=3)
    assert share("engine=ray") == Share(gpus=0.5, at_once=2)
    assert share("engine=ray", "engine.parallel=1").at_once == 1
    assert share("engine=ray", "engine.gpus=0.25") == Share(gpus=0.25)
    assert share("engine=ray", "engine.device=cpu") == Share()
