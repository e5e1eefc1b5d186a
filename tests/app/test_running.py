"""A run in this process: how it ends, and how it goes on where memory is short."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr.app.launch import machine, running
from heterofl_flwr.app.launch.request import Request, Share
from heterofl_flwr.app.launch.running import LOG, Checked, RunError, run_request
from heterofl_flwr.errors import ConfigError, HeteroFLError, OutOfMemoryError
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import from_flat, to_flat

SAMPLE = Path(__file__).parent / "sample_app"


@pytest.fixture(autouse=True)
def _path(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def request_(tmp_path) -> Request:
    config = to_flat(from_flat({})) | {"run.dir": str(tmp_path)}
    return Request(config=config, out=tmp_path, clients=4, share=Share(gpus=0.25), grid="ray")


@pytest.fixture
def served(monkeypatch):
    """Return the requests that were made, and how runs are to end, None for well."""
    requests, ends = [], []

    def serve(request, app):
        requests.append(request)
        if end := ends.pop(0):
            raise end

    monkeypatch.setattr(running, "_serve", serve)
    monkeypatch.setattr(machine, "cores", lambda: 4)
    monkeypatch.setattr(machine, "devices", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return requests, ends


SHORT = OutOfMemoryError("a client ran out of memory: out of memory at level a: Tried to allocate 2 GiB")


def test_short_of_memory_it_goes_on_with_half_at_once(request_, served, capsys):
    requests, ends = served
    ends += [SHORT, SHORT, None]
    run_request(request_)
    assert [request.share.at_once for request in requests] == [None, 2, 1]
    assert [request.share.gpus for request in requests] == [0.25, 0.5, 1.0]
    assert [request.config["run.resume"] for request in requests] == [False, False, False]
    assert capsys.readouterr().err.splitlines()[0] == f"heterofl: {SHORT}; going on with 2 at once"


def test_our_app_goes_on_where_it_was_and_another_starts_again(request_, served):
    requests, ends = served
    ends += [SHORT, None, SHORT, None]
    RunFolder(request_.out).start(request_.config)
    run_request(request_)
    assert requests[1].config["run.resume"] is True
    run_request(replace(request_, app=SAMPLE, config={"rounds": 2}))
    assert requests[3].config == {"rounds": 2}


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("", r"level a: Tried to allocate 2 GiB, and one client alone"),
        ("host:6379", "raise --gpus or --cpus"),  # what a cluster has is not known
    ],
)
def test_where_fewer_cannot_run_at_once_the_run_ends(request_, served, monkeypatch, address, complaint):
    served[1].append(SHORT)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=complaint):
        run_request(replace(request_, share=Share(gpus=1.0)))


def test_without_an_app_or_its_setting_nothing_starts(request_, served, tmp_path):
    with pytest.raises(ConfigError, match=r"no pyproject\.toml that describes a Flower app: Cannot find"):
        run_request(replace(request_, app=tmp_path, config={}))
    with pytest.raises(ConfigError, match=r"has no setting nothing; it has fault, rounds, note\.text"):
        run_request(replace(request_, app=SAMPLE, config={"nothing": 1}))
    assert served[0] == []


def sample(out: Path, grid: str = "local", **config) -> Request:
    return Request(config=config, out=out, clients=2, share=Share(at_once=2), app=SAMPLE, grid=grid)


def test_another_app_runs_in_this_process(tmp_path):
    run_request(sample(tmp_path, **{"rounds": 2, "note.text": "here"}))
    log = (tmp_path / LOG).read_text()
    assert "note: here" in log
    assert "result: 1" in log


def test_what_an_app_raises_is_how_its_run_ends(tmp_path):
    with pytest.raises(RunError) as caught:
        run_request(sample(tmp_path, fault="server"))
    first, *frames = str(caught.value).splitlines()
    assert first == "RuntimeError: the server's own fault"
    assert frames[-1].strip() == 'raise RuntimeError("the server\'s own fault")'
    assert "Traceback (most recent call last)" in (tmp_path / LOG).read_text()


def test_clients_that_all_raise_fail_the_run(tmp_path):
    with pytest.raises(RunError, match=r"in a round all 2 clients that were asked failed; .*the client's own fault"):
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
        with pytest.raises(HeteroFLError, match="in a round all 2 clients that were asked failed"):
            checked.raise_for_rounds_without_a_result()


on_ray = pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.simulation])


@pytest.mark.parametrize("grid", ["local", on_ray])
def test_a_client_that_lacks_memory_ends_the_attempt(tmp_path, monkeypatch, capsys, grid):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    with pytest.raises(RunError, match=r"MemoryError.*no room.*, and one client alone is too large"):
        run_request(sample(tmp_path, grid, fault="memory"))
    assert capsys.readouterr().err.count("going on with 1 at once") == (grid == "ray")
