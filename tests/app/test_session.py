"""A run with all its attempts, with Flower left out."""

from dataclasses import replace
from pathlib import Path

import pytest
from heterofl_flwr.app.launch.launcher import Outcome
from heterofl_flwr.app.launch.memory import Shortage

from heterofl_flwr.app.launch import gpus, session
from heterofl_flwr.app.launch.request import Request, Share
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report import RunFolder
from heterofl_flwr.settings import from_flat, to_flat

SAMPLE = Path(__file__).parent / "sample_app"
SHORT = Outcome("failed", "short", shortage=Shortage("a", "2 GiB"))
DONE = Outcome("completed")


@pytest.fixture
def request_(tmp_path) -> Request:
    config = to_flat(from_flat({})) | {"run.dir": str(tmp_path)}
    return Request(config=config, out=tmp_path, clients=4, share=Share(gpus=0.25))


@pytest.fixture
def launched(monkeypatch):
    """Let runs end as told; return the requests that were made."""
    requests, outcomes = [], []

    def launch(request, watch):
        requests.append(request)
        watch([])
        return outcomes.pop(0)

    monkeypatch.setattr(session, "launch", launch)
    monkeypatch.setattr(gpus, "cores", lambda: 4)
    monkeypatch.setattr(gpus, "devices", lambda: 1)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return requests, outcomes


def test_a_run_that_ends_is_not_made_again(request_, launched):
    requests, outcomes = launched
    outcomes.append(DONE)
    assert session.run_session(request_, grid="ray", log=False) == DONE
    assert requests == [request_]


def test_short_of_memory_it_goes_on_with_half_at_once(request_, launched, capsys):
    requests, outcomes = launched
    outcomes += [SHORT, SHORT, DONE]
    assert session.run_session(request_, grid="ray", log=True) == DONE
    assert [request.share.at_once for request in requests] == [None, 2, 1]
    assert [request.share.gpus for request in requests] == [0.25, 0.5, 1.0]
    assert [request.config["run.resume"] for request in requests] == [False, False, False]
    expected = "heterofl: a client of level a ran out of memory; it asked for 2 GiB more; going on with 2 at once"
    assert capsys.readouterr().err.splitlines()[0] == expected


def test_it_goes_on_with_a_run_that_has_begun(request_, launched):
    requests, outcomes = launched
    outcomes += [SHORT, DONE]
    RunFolder(request_.out).start(request_.config)
    session.run_session(request_, grid="ray", log=False)
    assert requests[1].config["run.resume"] is True


def test_another_app_starts_again_with_its_own_config(request_, launched):
    requests, outcomes = launched
    outcomes += [SHORT, DONE]
    session.run_session(replace(request_, app=SAMPLE, config={"rounds": 2}), grid="ray", log=True)
    assert requests[1].config == {"rounds": 2}


def test_one_client_that_is_too_large_ends_the_run_and_is_named(request_, launched):
    _, outcomes = launched
    outcomes.append(SHORT)
    ended = session.run_session(replace(request_, share=Share(gpus=1.0)), grid="ray", log=False)
    assert not ended.good
    assert ended.cause.startswith(
        "a client of level a ran out of memory; it asked for 2 GiB more, and one client alone"
    )


def test_on_a_cluster_the_user_decides(request_, launched, monkeypatch):
    _, outcomes = launched
    outcomes.append(SHORT)
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    assert "raise --gpus or --cpus" in session.run_session(request_, grid="ray", log=False).cause


def test_an_app_that_is_none_is_refused_before_anything_starts(request_, launched, tmp_path):
    requests, _ = launched
    with pytest.raises(ConfigError, match=r"pyproject\.toml describes no Flower app"):
        session.run_session(replace(request_, app=tmp_path, config={}), grid="ray", log=False)
    with pytest.raises(ConfigError, match=r"has no setting nothing; it has fault, rounds, note\.text"):
        session.run_session(replace(request_, app=SAMPLE, config={"nothing": 1}), grid="local", log=False)
    assert requests == []


@pytest.mark.parametrize("processes", [1, 2])
def test_another_app_runs_in_this_machines_processes(tmp_path, processes):
    config = {"rounds": 2, "note.text": "here"}
    request = Request(config=config, out=tmp_path, clients=2, share=Share(at_once=processes), app=SAMPLE)
    assert session.run_session(request, grid="local", log=False) == DONE
    log = (tmp_path / "logs" / "flower.log").read_text()
    assert "note: here" in log
    assert "result: 1" in log


def test_what_an_app_raises_is_how_its_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(gpus, "cores", lambda: 1)
    request = Request(config={"fault": "server"}, out=tmp_path, clients=2, app=SAMPLE)
    ended = session.run_session(request, grid="local", log=False)
    assert (ended.status, ended.cause) == ("failed", "RuntimeError: the server's own fault")
    assert ended.trace[-1] == "RuntimeError: the server's own fault"


def test_our_own_app_runs_here_too_and_goes_on(tmp_path):
    config = to_flat(from_flat({"num-rounds": 1, "train.epochs": 1, "model.hidden": "4,8", "run.callbacks": ""}))
    config |= {"run.dir": str(tmp_path)}
    request = Request(config=config, out=tmp_path, clients=3, share=Share(at_once=1))
    assert session.run_session(request, grid="local", log=False) == DONE
    again = session.run_session(request, grid="local", log=False)
    assert "resume it" in again.cause
    assert again.trace == ()
    more = replace(request, config={**config, "num-rounds": 2, "run.resume": True})
    assert session.run_session(more, grid="local", log=False) == DONE
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
