"""Jobs: their names, their run config, what is invalid, how far they are and how they are resumed."""

from collections.abc import Callable

import pytest
import torch

from heterofl_flwr.app.request import Request
from heterofl_flwr.app.run_app import RunError
from heterofl_flwr.app.sweep import job as module
from heterofl_flwr.app.sweep.job import Job, check_jobs, is_done, read_score, run_once
from heterofl_flwr.app.sweep.listing import list_jobs, list_results
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.validate import from_flat, to_flat
from tests.simulations.sweeping import SHRUNKEN, job


def test_names_stay_as_they_are():
    # A name that changes makes all runs of earlier versions be made again.
    dynamic = "assignment=dynamic"
    assert job("data=mnist", "mix=e").name == "mnist-iid-e1-fix-s0-5e2d3729"
    assert (
        job("data=cifar10", "mix=a-e", "split=non-iid-2", dynamic).name == "cifar10-non-iid-2-a1-e1-dynamic-s0-d5a07d10"
    )
    assert job("model.norm=gn", "engine.clients=7", dynamic).name == "digits-iid-a1-b1-c1-d1-e1-dynamic-s0-92f2ff41"
    assert job("data=mnist", "mix=e", "method=fedrolex").name == "mnist-iid-e1-fix-s0-3b255307"


SAME = """
data.root=elsewhere data.name=ylecun/mnist train.lr=0.01 assignment=fix model=cnn mix=e7 folder=elsewhere report=lean
engine=ray engine.clients=100 engine=ray+engine.cpus=2 engine.device=cpu engine=ray+engine.parallel=3 engine.timeout=60
engine.window=8 sample.wait=99 sample.min-nodes=10 run.metric=worst-accuracy
"""
OTHER = """
seed=1 mix=d split=non-iid-2 num-rounds=3 model=preresnet18 model.norm=gn model.scaler=false method=heterofl-fixed
train.clip=0 engine.name=plain engine.clients=50 evaluate=each-round
sample.min-replies=8
"""


@pytest.mark.parametrize("same", SAME.split())
def test_what_changes_no_result_changes_no_name(same):
    assert job("data=mnist", "mix=e", *same.split("+")).name == job("data=mnist", "mix=e").name


@pytest.mark.parametrize("other", OTHER.split())
def test_what_may_change_a_result_changes_the_name(other):
    assert job("data=mnist", "mix=e", other).name != job("data=mnist", "mix=e").name


def test_the_run_config_is_that_of_heterofl_run(monkeypatch, tmp_path):
    monkeypatch.setenv("HETEROFL_DATA", str(tmp_path))
    found = job("data=mnist", "mix=e", path=tmp_path / "run")
    own = {"run.dir": str(found.path), "data.root": str(tmp_path), "sample.min-nodes": 100, "engine.window": 64}
    assert found.config == {**to_flat(found.settings), **own}
    assert from_flat(found.config).num_rounds == 200
    assert job("sample.min-nodes=3").config["sample.min-nodes"] == 3
    assert job("data=digits").config["sample.min-nodes"] == 20
    assert job("engine.window=0").config["engine.window"] == 0


@pytest.fixture
def tiny(tmp_path) -> Job:
    return job(*SHRUNKEN, "num-rounds=3", path=tmp_path / "jobs" / "tiny")


@pytest.fixture
def request_of(monkeypatch) -> Callable[[Job], Request]:
    """Return a function that runs a job up to the launch, and returns what would be launched."""
    requests = []
    monkeypatch.setattr(module, "run_request", requests.append)

    def launch(own: Job) -> Request:
        assert run_once(own) is True
        return requests[-1]

    return launch


def ran(own: Job, rounds: int, *, finished: bool = False, seconds: float = 2.0, **changed) -> RunFolder:
    """Leave what a run leaves that has come so far."""
    folder = RunFolder(own.path)
    folder.start(own.config | {key.replace("_", "-"): value for key, value in changed.items()})
    for number in range(1, rounds + 1):
        record = {"server_round": number, "seconds": seconds, "learning_rate": 0.1, "rates": {0: 1.0}}
        folder.append(RoundRecord(**record, evaluate={"global-accuracy": number / 10, "local-accuracy": 0.9}))
        folder.save_checkpoint(RunState(server_round=number, state={"weight": torch.zeros(1)}))
    folder.note(finished="now" if finished else None)
    return folder


def test_a_job_that_is_done_is_not_run_again(tiny, request_of):
    assert (tiny.stage, is_done(tiny), read_score(tiny)) == ("new", False, None)
    folder = ran(tiny, 2)
    assert (tiny.stage, is_done(tiny)) == ("begun", False)
    folder.note(finished="now")
    assert (tiny.stage, is_done(tiny), run_once(tiny)) == ("done", True, False)


@pytest.mark.parametrize("answers", [0, 1])
def test_a_job_whose_last_models_no_client_evaluated_has_failed(tiny, monkeypatch, answers):
    """As ``heterofl run`` has: a function of the user's may fail on every client."""

    def run(request):
        record = {"seconds": 1.0, "learning_rate": 0.1, "rates": {0: 1.0}, "evaluate_asked": 2}
        folder = ran(tiny, 1, finished=True)
        failures = {0: "my metric fails"}
        folder.append(RoundRecord(server_round=2, evaluate_answers=answers, evaluate_failures=failures, **record))

    monkeypatch.setattr(module, "run_request", run)
    if answers:
        assert run_once(tiny)
        return
    with pytest.raises(RunError, match="in round 2 no client evaluated the global model: partition 0: my metric fails"):
        run_once(tiny)


def test_the_metric_is_the_last_one_of_the_evaluation(tiny):
    ran(tiny, 2)
    assert read_score(tiny).final == 0.2
    other = job(*SHRUNKEN, "run.metric=local-accuracy", path=tiny.path)
    assert read_score(other).final == 0.9


def test_what_a_diverged_run_measured_before_is_no_result_for_a_search(tiny):
    ran(tiny, 2).note(diverged=True)
    assert (tiny.stage, run_once(tiny), read_score(tiny)) == ("diverged", False, None)


def test_a_folder_with_another_run_raises_and_is_left_alone(tiny):
    folder = ran(tiny, 3, finished=True, num_rounds=9, seed=4)
    assert tiny.stage == "blocked"
    with pytest.raises(
        ConfigError, match=r"had other settings: .*num-rounds was 9 and is 3.*new run in another folder"
    ):
        run_once(tiny)
    assert len(folder.history()) == 3


def test_a_run_with_another_number_of_clients_is_another_run(tiny):
    ran(tiny, 2).note(clients=tiny.clients)
    assert tiny.stage == "begun"
    other = job(*SHRUNKEN, "num-rounds=3", "engine.clients=6", path=tiny.path)
    with pytest.raises(ConfigError, match=r"engine\.clients: found 6, but the run in .* has 20; expected 20"):
        run_once(other)
    assert other.stage == "blocked"


def test_a_resumed_job_has_the_incidental_settings_of_the_new_command(tiny, request_of):
    """The folder names no code that the sweep does not name."""
    own = {"run.checkpoint_every": 2, "engine.timeout": 5.0, "data.root": "/before", "engine.device": "cuda"}
    ran(tiny, 2, **own, **{"sample.min_replies": 3, "run.callbacks": "a_strangers:callback"})
    assert request_of(tiny).config == {**tiny.config, "run.resume": True}


@pytest.mark.parametrize(("share", "number"), [("0.25", 0.25), ("2", 2), ("1.5", None)])
def test_a_client_has_a_share_of_a_gpu_or_whole_gpus(share, number):
    if number is not None:
        assert job("engine=ray", f"engine.gpus={share}").engine.gpus == number
        return
    with pytest.raises(ConfigError, match=r"engine\.gpus: found 1\.5 .*expected a share such as 0\.25"):
        job("engine=ray", f"engine.gpus={share}")


@pytest.mark.parametrize("option", ["cpus=2", "parallel=3", "gpus=0.5"])
def test_options_of_rays_actors_need_ray(option):
    with pytest.raises(ConfigError, match=rf"engine\.{option[:3]}.*found .*, but engine\.grid is local"):
        job(f"engine.{option}")
    assert job("engine=ray", f"engine.{option}").engine.grid == "ray"


def test_time_follows_from_rounds_that_were_run(tmp_path):
    jobs = [job("data=mnist", "num-rounds=20", f"mix={mix}", path=tmp_path / mix) for mix in "edc"]
    ran(jobs[0], 5)
    ran(jobs[1], 1, seconds=14.0)
    rows = [line.split("  ") for line in list_jobs(jobs).splitlines()]
    times = [[cell.strip() for cell in row if cell.strip()][1:3] for row in rows if row[0] in ("e", "d", "c")]
    # Its own rounds say it; of the last, which has none, those of the others: 24 seconds for 6 rounds.
    assert times == [["30 s", "round 5 of 20"], ["4 min 26 s", "round 1 of 20"], ["1 min 20 s", "new"]]
    assert list_jobs([jobs[2]]).endswith("1 job, 0 done; the time of the others is known after a round")


def test_results_are_means_over_seeds_of_what_varies(tmp_path):
    rows = [["data=mnist", f"mix={mix}", f"seed={seed}"] for mix in "de" for seed in range(3)]
    jobs = [job(*row, path=tmp_path / "-".join(row[1:])) for row in rows]
    assert list_results(jobs, rows) == ""
    for rounds, own in zip((2, 4, 9, 5), jobs[:4], strict=True):
        ran(own, rounds, finished=True)
    ran(jobs[4], 3)
    *lines, remark = list_results(jobs, rows).splitlines()[2:]
    assert remark.startswith("runs ended in different rounds (mix=d: 2, 4, 9, mix=e: 5)")
    table = [line.split() for line in lines]
    assert [" ".join(line[:7]) for line in table] == [
        "mix=d 3 global-accuracy 50.0 % ± 36.1",
        "mix=e 1 global-accuracy 50.0 % 50.0 %",
    ]
    assert table[1][-2:] == ["+30.0", "points"]  # from the first seed of mix=d, which had 20 %


def test_the_result_of_a_loss_is_its_median_over_clients_by_name(tmp_path):
    own = job("mix=d", "run.metric=local-loss", path=tmp_path)
    record = {"server_round": 1, "seconds": 1.0, "learning_rate": 0.1, "rates": {0: 1.0}}
    medians = {"evaluate": {"local-loss": 9.0}, "evaluate_medians": {"local-loss": 1.0}}
    ran(own, 0, finished=True).append(RoundRecord(**record, **medians))
    (line,) = list_results([own], [["seed=0"]]).splitlines()[2:]
    assert line.startswith("HeteroFL on digits, d1 ")  # without a setting but seeds
    assert line.split()[4:8] == ["1", "local-loss", "(median)", "1"]


def test_the_levels_of_each_mix_are_checked_before_the_first_job(tmp_path, monkeypatch):
    model = "nn.Sequential(nn.Flatten(), nn.Linear(64, int(64 * rate)), nn.Linear(64, 10))"
    (tmp_path / "failing_model.py").write_text(f"from torch import nn\n\ndef build(rate):\n    return {model}\n")
    monkeypatch.syspath_prepend(tmp_path)
    jobs = [job("model.name=failing_model:build", "model.hidden=''", f"mix={mix}") for mix in "ba"]
    with pytest.raises(ConfigError, match=r"failing_model:build fails at rate 0\.5"):
        check_jobs(jobs)


def test_a_stage_that_the_assignment_excludes_is_found_before_the_first_job():
    jobs = [
        job(f"assignment={assignment}", "server.stages='feddyn(0.1)'", *SHRUNKEN) for assignment in ("fix", "dynamic")
    ]
    with pytest.raises(ConfigError, match="assignment='fix'"):
        check_jobs(jobs)


def test_a_global_model_that_no_client_holds_is_checked_before_the_first_job():
    jobs = [job("global-rate=a", *SHRUNKEN, f"mix={mix}") for mix in ("a-e", "e")]
    with pytest.raises(ConfigError, match="no client of the mix e1 has this rate"):
        check_jobs(jobs)


def test_clients_that_take_no_part_are_checked_before_the_first_job():
    jobs = [job("assignment=dynamic", *SHRUNKEN, f"mix={mix}") for mix in ("a1-e1", "a1-x1")]
    with pytest.raises(ConfigError, match="some clients take no part, always the same ones: expected assignment='fix'"):
        check_jobs(jobs)
