"""A run in this process, and how it ends."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr.app.client_resources import cohort_limit, open_grid
from heterofl_flwr.app.request import Request, read_app
from heterofl_flwr.app.run_app import LOG, Checked, RunError, Warnings, run_request
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError, HeteroFLError, OutOfMemoryError
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.settings.validate import from_flat, to_flat

SAMPLE = Path(__file__).parent / "sample_app"


pytestmark = pytest.mark.usefixtures("machine")


def test_without_an_app_or_its_setting_nothing_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"no pyproject\.toml that describes a Flower app: Cannot find"):
        read_app(tmp_path, {}, out=tmp_path, clients=2)
    with pytest.raises(ConfigError, match=r"has no setting nothing; it has fault, rounds, note\.text"):
        sample(tmp_path, nothing=1)


def sample(out: Path, grid: str = "local", **config) -> Request:
    return read_app(SAMPLE, config, out=out, clients=2, parallel=1, grid=grid)


def test_another_app_runs_in_this_process(tmp_path):
    run_request(sample(tmp_path, **{"rounds": 2, "note.text": "here"}))
    log = (tmp_path / LOG).read_text()
    assert "note: here" in log
    assert "result: 1" in log


def test_the_log_of_a_run_has_a_name_that_is_not_utf8(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", False)  # a test's report must be UTF-8
    run_request(sample(tmp_path, **{"rounds": 1, "note.text": os.fsdecode(b"\xff")}))
    assert "note: \\udcff" in (tmp_path / LOG).read_text(encoding="utf-8")
    assert "Logging error" not in capsys.readouterr().err


def test_the_log_of_another_app_is_not_written_through_a_link(tmp_path):
    victim, out = tmp_path / "victim", tmp_path / "run"
    victim.mkdir()
    out.mkdir()
    (out / LOG.parent).symlink_to(victim)
    with pytest.raises(ConfigError, match=r"run has links \(logs\)"):
        run_request(sample(out))
    assert list(victim.iterdir()) == []


KEEPS = """
from flwr.serverapp import ServerApp
from heterofl_flwr import HeteroFL, Slicing
from heterofl_flwr.report import Recorder, RunFolder
from tests.federation.tiny import NEVER, build, make_app

client, server = make_app(), ServerApp()

@server.main()
def main(grid, context):
    folder, rounds = RunFolder("records"), context.run_config["rounds"]
    folder.start({}, resume=rounds > 1)
    shared = Slicing(shared=["classifier.*"])
    strategy = HeteroFL(build, "a1", slicing=shared, evaluation=NEVER, callbacks=[Recorder(folder)])
    strategy.start(grid, num_rounds=rounds, resume=folder.load_checkpoint() if rounds > 1 else None)
"""


def test_another_app_resumes_with_the_layers_that_its_clients_keep(tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    (app / "keeps.py").write_text(KEEPS)
    table = (SAMPLE / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(
        table.replace("sample.server:app", "keeps:server").replace("sample.client:app", "keeps:client")
    )
    for rounds in (1, 2):
        run_request(read_app(app, {"rounds": rounds}, out=tmp_path / "run", clients=2))
    assert [record.failures for record in RunFolder(tmp_path / "records").history()] == [{}, {}]


def test_warnings_about_rounds_are_shown_once_for_each_cause(capsys):
    handler = Warnings()
    for level, text in (
        ("WARNING", "round 1: partition 3 sent nothing"),
        ("WARNING", "round 2: partition 5 sent nothing"),
        ("WARNING", "round 2: the sum stays closed"),
        ("INFO", "round 2: clients=2/2"),
        *[("WARNING", "the disk is full")] * 2,
    ):
        handler.handle(logging.makeLogRecord({"msg": text, "levelno": getattr(logging, level)}))
    shown = ["round 1: partition 3 sent nothing", "round 2: the sum stays closed", *["the disk is full"] * 2]
    assert capsys.readouterr().err.splitlines() == [f"warning: {text}" for text in shown]


def test_what_an_app_raises_is_how_its_run_ends(tmp_path):
    with pytest.raises(RunError) as caught:
        run_request(sample(tmp_path, fault="server"))
    first, *frames = str(caught.value).splitlines()
    assert first == "RuntimeError: the server's own fault"
    assert frames[-1].strip() == 'raise RuntimeError("the server\'s own fault")'
    assert "Traceback (most recent call last)" in (tmp_path / LOG).read_text()


def test_clients_that_all_raise_fail_the_run(tmp_path):
    with pytest.raises(RunError, match=r"in a round all clients \(2\) failed; RuntimeError: the client's own fault$"):
        run_request(sample(tmp_path, fault="client"))


def test_a_good_round_hides_no_bad_one():
    app, fails = ClientApp(), [False]

    @app.train()
    def train(message, context):
        if fails[0]:
            raise ValueError
        return Message(RecordDict(), reply_to=message)

    with LocalGrid(app, 2) as grid:
        checked = Checked(grid)
        for kind in ("evaluate", "train"):
            checked.send_and_receive([Message(RecordDict(), node_id, kind) for node_id in grid.get_node_ids()])
        checked.raise_for_rounds_without_a_result()
        fails[0] = True
        checked.send_and_receive([Message(RecordDict(), node_id, "train") for node_id in grid.get_node_ids()])
        with pytest.raises(HeteroFLError, match=r"in a round all clients \(2\) failed"):
            checked.raise_for_rounds_without_a_result()


def test_a_process_in_which_cuda_cannot_start_lacks_memory():
    app = ClientApp()

    @app.train()
    def train(message, context):
        raise torch.AcceleratorError("CUDA error: out of memory")

    with LocalGrid(app, 1) as grid, pytest.raises(OutOfMemoryError, match="start a run with a smaller model"):
        Checked(grid).send_and_receive([Message(RecordDict(), node_id, "train") for node_id in grid.get_node_ids()])


@pytest.fixture(scope="module")
def ray():
    """Keep one Ray for the grids of this file, each of which would start its own."""
    from heterofl_flwr.grids.ray_session import Session

    Session.enter()
    yield
    Session.leave()


on_ray = pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.simulation])


@pytest.mark.parametrize("grid", ["local", on_ray])
def test_a_client_that_lacks_memory_ends_the_run(tmp_path, grid, request):
    if grid == "ray":
        request.getfixturevalue("ray")
    remedy = "resume with fewer clients at once" if grid == "ray" else "start a run with a smaller model"
    with pytest.raises(RunError, match=rf"MemoryError.*no room.*; {remedy}"):
        run_request(sample(tmp_path, grid, fault="memory"))


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Return a function that makes a request for settings and a device."""

    def ask(settings, device):
        config = to_flat(from_flat(settings))
        monkeypatch.setitem(vars(load_workload(config)), "device", torch.device(device))
        return Request(config=config, out=tmp_path, clients=100)

    return ask


def message_of(number):
    """Return a message that brings so many parameters."""
    arrays = ArrayRecord({"w": Array(np.zeros(number, dtype=np.float32))})
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord()}), 5, "train")


@pytest.mark.parametrize(
    ("settings", "device", "small", "large"),
    [
        ({}, "cpu", 5, 1),
        ({"engine.cohort": 3}, "cpu", 3, 1),
        ({"engine.name": "cohort"}, "cpu", 5, 5),
        ({"engine.name": "plain"}, "cpu", 1, 1),
        ({}, "cuda", 50, 50),
        ({"engine.name": "seats"}, "cuda", 50, 50),
    ],
)
@pytest.mark.usefixtures("identity")
def test_clients_train_together_where_that_pays(asked, settings, device, small, large):
    cohort = cohort_limit(asked(settings, device))
    assert (cohort(message_of(1000)), cohort(message_of(1_000_000))) == (small, large)


@pytest.mark.parametrize(
    ("name", "device", "by_rate"),
    [("seats", "cpu", False), ("cohort", "cpu", True), ("auto", "cpu", True), ("auto", "cuda", True)],
)
def test_only_seats_train_clients_of_several_rates_together(asked, name, device, by_rate):
    with open_grid(asked({"engine.name": name}, device)) as grid:
        assert grid._by_rate == by_rate


METRIC = """
import os, signal
from pathlib import Path

def maps(model, inputs, targets):
    mapped, mark = "/memfd:heterofl-" in Path("/proc/self/maps").read_text(), Path(__file__).with_name("killed")
    if mapped and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"mapped": float(mapped)}
"""


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.usefixtures("ray")
def test_actors_also_in_place_of_a_killed_one_share_the_data_set_and_results_are_those_of_one_process(
    tmp_path, monkeypatch
):
    (tmp_path / "looking.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"num-rounds": 1, "train.epochs": 1, "model.hidden": "8", "engine.name": "plain"}
    settings |= {"evaluate.metric": "looking:maps"}
    metrics, states = {}, {}
    for grid in ("local", "ray"):
        folder = tmp_path / grid
        config = to_flat(from_flat({**settings, "run.dir": str(folder)}))
        run_request(Request(config=config, out=folder, clients=4, parallel=2, grid=grid))
        (record,) = RunFolder(folder).history()
        metrics[grid], states[grid] = dict(record.evaluate), RunFolder(folder).load_checkpoint().state
    assert (tmp_path / "killed").exists()
    assert [metrics[grid].pop("mapped") for grid in ("local", "ray")] == [0.0, 1.0]
    assert metrics["ray"] == metrics["local"]
    assert states["ray"].keys() == states["local"].keys()
    assert all(torch.equal(tensor, states["ray"][name]) for name, tensor in states["local"].items())


HALVES = """
from dataclasses import dataclass, replace
from heterofl_flwr import ClientStage, ServerStage, client_stage

@client_stage("test-halved")
@dataclass(frozen=True)
class ClientHalf(ClientStage):
    share: float

    def on_update(self, update, context):
        before = context.received()
        moved = {name: before[name].lerp(new, self.share) for name, new in update.tensors.items()}
        return replace(update, tensors=moved)

class ServerHalf(ServerStage):
    def __init__(self, share=1.0):
        self.share = share

    def client(self):
        return ClientHalf(self.share)
"""


@pytest.mark.slow
@pytest.mark.simulation
@pytest.mark.usefixtures("ray")
def test_a_users_stage_named_in_the_settings_runs_on_actors_too(tmp_path, monkeypatch):
    (tmp_path / "halves.py").write_text(HALVES)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"num-rounds": 1, "train.epochs": 1, "model.hidden": "8", "mix": "a1", "engine.name": "plain"}
    moved = {}
    for grid, share in (("local", 1.0), ("ray", 0.5)):
        config = {**settings, "server.stages": f"halves:ServerHalf({share})", "run.dir": str(tmp_path / grid)}
        run_request(Request(config=to_flat(from_flat(config)), out=tmp_path / grid, clients=4, parallel=1, grid=grid))
        moved[share] = RunFolder(tmp_path / grid).load_checkpoint().state
    start = {name: 2 * moved[0.5][name] - moved[1.0][name] for name in moved[1.0]}
    assert all(
        torch.equal(start[name], torch.zeros_like(start[name])) for name in start if name.endswith("linear.bias")
    )
    assert any(moved[1.0]["linear.bias"] != 0)
