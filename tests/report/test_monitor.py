import json
import math
import re
import socket
import time
from types import SimpleNamespace
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from heterofl_flwr.app.callbacks import build_callbacks
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.report import Monitor, monitor
from tests.deployment.howto import PAGE
from tests.docs.pages import blocks


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with build_opener(ProxyHandler({})).open(f"http://{address}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics(address: str) -> dict[tuple[str, ...], float]:
    """Return each value by its name and its labels."""
    _, text = get(address, "/metrics")
    return {
        (sample.name.removeprefix("heterofl_"), *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def served():
    callback = Monitor("127.0.0.1:0", timeout=100.0, wait=10.0)
    yield callback
    callback.close()


def test_metrics_are_those_of_the_records(served, fake):
    served.on_start(1, 9, {})
    progress = [
        fake.progress(1, 9, refused=(3,), failures={3: "too large", 5: "no reply in time"}),
        fake.progress(2, 9, stages={"epsilon": 1.5}, evaluate_failures={7: "no moments"}),
        fake.progress(3, 9, failures={5: "busy"}, names={5: "camera"}, rates={1: 1.0, 5: 0.5, 9: 0.5, 11: 0.25}),
    ]
    progress[2].record.away = {"phone": 2}
    for own in progress:
        served.on_round_end(own)
    values, records = metrics(served.address), [own.record for own in progress]
    assert (values["round",], values["rounds",], values["healthy",]) == (3, 9, 1)
    assert values["round_seconds",] == records[2].seconds
    assert values["bytes_total", "up"] == sum(record.bytes_up for record in records)
    assert values["bytes_total", "down"] == sum(record.bytes_down for record in records)
    assert (values["failures_total", "rejected"], values["failures_total", "other"]) == (1, 3)
    assert {key[1]: value for key, value in values.items() if key[0] == "clients_asked"} == {"a": 1, "b": 2, "c": 1}
    assert {key[1]: value for key, value in values.items() if key[0] == "clients_answered"} == {"a": 1, "b": 1, "c": 1}
    assert sorted(key[1] for key in values if key[0] == "node_failing") == ["camera", "partition 3", "partition 7"]
    assert values["node_away", "phone"] == 2
    assert values["metric", "", "loss", "train"] == records[2].train["loss"]
    assert values["metric", "c", "global-accuracy", "evaluate"] == records[1].evaluate_by_level["c"]["global-accuracy"]
    assert ("metric", "", "coverage", "evaluate") not in values  # no loss, accuracy or perplexity
    served.on_round_end(progress[1])
    assert metrics(served.address)["epsilon",] == 1.5


def test_the_page_shows_the_entries_and_the_metrics(served, fake):
    served.on_start(1, 9, {})
    served.on_round_end(fake.progress(2, 9, stages={"epsilon": 1.0}))
    (shown,) = blocks(PAGE, "json")
    assert json.loads(shown.code).keys() == served.health().keys()
    named = set(re.findall(r"`heterofl_(\w+)`", PAGE.read_text(encoding="utf-8")))
    families = text_string_to_metric_families(get(served.address, "/metrics")[1])
    names = {own.name.removeprefix("heterofl_") for own in families if own.name.startswith("heterofl_")}
    assert names <= {*named, "clients_answered", "bytes", "failures"}  # bytes_total and failures_total


def test_health_names_who_is_missing_and_since_when(served, fake):
    served.on_start(4, 9, {})
    assert json.loads(get(served.address, "/health")[1])["round"] == 3
    served.on_round_end(fake.progress(4, 9, failures={5: "no reply in time"}, names={5: "camera"}, away={"phone": 4}))
    first = served.health()
    served.on_reply("trained", 2, 5, 0)
    changes = {"failures": {5: "busy"}, "rates": {5: 1.0, 7: 1.0}, "names": {5: "camera"}, "answered": 1, "expected": 3}
    served.on_round_end(fake.progress(5, 9, away={"phone": 4, "watch": 5}, notes=("away: phone, watch",), **changes))
    served.on_reply("trained", 2, 3, 1)
    status, text = get(served.address, "/health")
    health = json.loads(text)
    assert (status, health["status"], health["round"], health["clients"]) == (200, "ok", 5, "1/3")
    assert health["failing"] == [{**first["failing"][0], "reason": "busy"}]
    assert health["failing"][0]["name"] == "camera"
    assert health["away"].keys() == {"phone", "watch"}
    assert health["away"]["phone"] == first["away"]["phone"] == first["failing"][0]["since"]
    assert (health["replies"], health["notes"]) == ("1 of 3 clients trained, 1 failed", ["away: phone, watch"])
    served.on_round_end(fake.progress(6, 9, failures={}, rates={5: 1.0}))
    assert (served.health()["failing"], served.health()["away"]) == ([], {})


def test_a_client_that_evaluates_again_is_no_longer_failing(served, fake):
    served.on_start(1, 9, {})

    def failing(server_round, **changes):
        served.on_round_end(fake.progress(server_round, 9, **{"rates": {}, "failures": {}, **changes}))
        return [client["name"] for client in served.health()["failing"]]

    both = {"evaluate_failures": {5: "busy"}, "failures": {6: "busy"}, "evaluate_asked": 3}
    assert failing(1, **both) == ["partition 5", "partition 6"]
    assert failing(2, evaluate_asked=0) == ["partition 5", "partition 6"]  # nobody evaluates
    assert failing(3, evaluate_asked=3) == ["partition 6"]  # has not trained again


def test_spare_clients_that_are_not_waited_for_have_not_answered(served, fake):
    """They counted as clients with a usable reply, and were no longer failing."""
    served.on_start(1, 9, {})
    served.on_round_end(fake.progress(1, 9, rates={1: 1.0, 2: 0.5}, failures={2: "busy"}))
    served.on_round_end(fake.progress(2, 9, rates={1: 1.0, 2: 0.5}, failures={}, spared=(2,)))
    values = metrics(served.address)
    assert (values["clients_answered", "a"], values["clients_answered", "b"]) == (1, 0)
    assert [client["name"] for client in served.health()["failing"]] == ["partition 2"]


def test_a_node_that_does_not_answer_the_capability_query_is_failing(served, fake):
    served.on_start(1, 9, {})
    served.on_round_end(fake.progress(1, 9, unanswered=("tablet",)))
    (failing,) = served.health()["failing"]
    assert (failing["name"], failing["reason"]) == ("tablet", "no answer to the capability query")
    assert metrics(served.address)["node_failing", "tablet"] == 1
    served.on_round_end(fake.progress(2, 9))
    assert served.health()["failing"] == []


def test_a_run_that_waits_without_a_limit_has_a_health_in_strict_json():
    callback = Monitor("127.0.0.1:0", wait=math.inf)
    callback.on_start(1, 9, {})
    status, text = get(callback.address, "/health")
    callback.close()
    assert (status, json.loads(text, parse_constant=pytest.fail)["limit"]) == (200, "inf")


def test_a_run_is_healthy_until_a_round_is_overdue(served, fake, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(monitor, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    served.on_start(1, 9, {})
    for seconds, margin in ((0.0, 60.0), (30.0, 60.0), (500.0, 500.0)):
        if seconds:
            served.on_round_end(fake.progress(1, 9, seconds=seconds))
        now[0] += 100.0 + 10.0 + margin
        assert get(served.address, "/health")[0] == 200
        now[0] += 0.1
        status, text = get(served.address, "/health")
        assert (status, json.loads(text)["status"]) == (503, "overdue")
        assert metrics(served.address)["healthy",] == 0
    assert get(served.address, "/other")[0] == 404


def test_an_address_is_free_after_a_run_and_in_use_during_it(served, fake):
    served.on_start(1, 2, {})
    second = Monitor(served.address)
    with pytest.raises(ConfigError, match=rf"{served.address}.*in use.*run\.metrics-address"):
        second.on_start(1, 2, {})
    served.on_end({})
    fake.run([second], 1, 2)
    served.on_start(1, 2, {})  # a callback that was used before


@pytest.mark.parametrize("address", ["9090", ":9090", "localhost:", "localhost:http", "localhost:65536", "", None])
def test_an_address_that_is_none_is_named(address):
    with pytest.raises(ConfigError, match="expected host:port") as raised:
        Monitor(address)
    assert repr(address) in str(raised.value)


def test_a_request_that_does_not_come_holds_no_other_up(served):
    served.on_start(1, 2, {})
    host, port = served.address.split(":")
    with socket.create_connection((host, int(port))) as half:
        half.sendall(b"GET /health")
        assert get(served.address, "/health")[0] == 200
        half.setblocking(False)
        with pytest.raises(BlockingIOError):  # it is waited for still
            half.recv(1)


def test_a_request_that_is_cut_off_is_no_error(served):
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(b"x")  # it is not read, so the end of the other side is a reset
        theirs.close()
        monitor._Handler(served, bytes, ours, ("", 0), None)


def test_the_setting_has_a_limit_that_follows_from_those_of_a_round():
    settings = {"run.metrics-address": "127.0.0.1:0", "engine.timeout": 20.0, "sample.wait": 5.0, "run.callbacks": ""}
    (callback,) = build_callbacks(load_workload(settings), None)
    callback.on_start(1, 2, {})
    try:
        assert json.loads(get(callback.address, "/health")[1])["limit"] == 20.0 + 5.0 + monitor.MARGIN
    finally:
        callback.close()
