"""``level="auto"``: a node measures itself once, keeps what it found, and never goes beyond what the server offers."""

import json
import logging
from weakref import WeakSet

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, capability, messages
from heterofl_flwr.capability import answer_capability
from heterofl_flwr.classic import properties_of
from heterofl_flwr.client import answer_queries
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.training.capacity import Trial
from tests.federation.tiny import Watched, build, inputs, make_app

pytestmark = pytest.mark.usefixtures("identity")


@pytest.fixture
def measured(monkeypatch):
    """Let measuring say 0.25, or the next smaller rate that is offered; return what was asked."""
    asked = []

    def largest_rate(trial, rates, budget):
        asked.append((tuple(rates), budget, trial.steps))
        return max(rate for rate in rates if rate <= 0.25)

    monkeypatch.setattr(capability, "largest_rate", largest_rate)
    return asked


def trial(steps=3):
    return Trial(build, torch.ones(4, 3), steps, torch.device("cpu"))


def node(**config):
    return Context(1, 2, {"level": "auto", **{key.replace("_", "-"): config[key] for key in config}}, RecordDict(), {})


def query(*rates):
    config = {"rates": list(rates)} if rates else {}
    return Message(RecordDict({"config": messages.new_config(config)}), 2, "query.capability")


def ask(context, *rates, steps=3):
    return answer_capability(query(*rates), context, lambda: trial(steps)).content["config"].get("capacity")


def test_a_node_chooses_among_the_rates_of_the_servers_mix(measured):
    assert ask(node(), 0.5, 0.125) == 0.125
    assert ask(node()) == 0.25  # a server that offers none: the paper's levels
    assert measured == [((0.5, 0.125), 60.0, 3), ((1.0, 0.5, 0.25, 0.125, 0.0625), 60.0, 3)]


def test_it_measures_once_in_a_run(measured):
    context = node()
    assert [ask(context, 1.0, 0.25) for _ in range(3)] == [0.25] * 3
    assert len(measured) == 1
    ask(context, 1.0, 0.25, steps=4)
    ask(context, 0.25, 0.125, steps=4)
    assert len(measured) == 3  # what it depends on had changed


def test_with_a_file_it_measures_once_for_all_runs(measured, tmp_path):
    path = tmp_path / "deep" / "capacity.json"
    assert [ask(node(capacity_path=str(path)), 1.0, 0.25) for _ in range(3)] == [0.25] * 3
    assert len(measured) == 1
    assert json.loads(path.read_text())["rate"] == 0.25
    assert ask(node(capacity_path=str(path), round_seconds=5), 1.0, 0.25) == 0.25
    assert measured[1][1] == 5


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"of": 1}', '{"rate": "a"}'])
def test_a_damaged_file_is_measured_anew(measured, tmp_path, text):
    path = tmp_path / "capacity.json"
    path.write_text(text)
    assert ask(node(capacity_path=str(path)), 1.0, 0.25) == 0.25
    assert len(measured) == 1
    assert json.loads(path.read_text())["rate"] == 0.25


def test_a_file_that_cannot_be_written_costs_a_warning(measured, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert ask(node(capacity_path=str(tmp_path)), 1.0, 0.25) == 0.25
    assert "cannot be written" in caplog.text
    assert len(measured) == 1


@pytest.mark.parametrize("seconds", [0, -1.0, "60", True, float("inf")])
def test_a_time_that_means_nothing_is_refused(seconds):
    with pytest.raises(ConfigError, match="round-seconds="):
        ask(node(round_seconds=seconds))


@pytest.mark.parametrize("rates", [[], [1], ["a"]])
def test_rates_that_a_server_cannot_mean_are_refused(rates):
    message = query()
    message.content["config"] = ConfigRecord({**message.content["config"], "rates": rates})
    with pytest.raises(ReplyError, match="as rates, expected a list of numbers"):
        answer_capability(message, node(), trial)


def test_an_app_without_data_and_the_classic_api_say_that_they_cannot_measure():
    with pytest.raises(ConfigError, match="pass data to answer_queries, or name a level"):
        answer_capability(query(), node())
    with pytest.raises(ConfigError, match="the classic API has no place for: name a level"):
        properties_of(node())


def test_a_converted_app_measures_itself_on_its_own_batches(measured):
    app = ClientApp()
    answer_queries(app, build, lambda context: inputs(0).split(2), epochs=4)
    reply = app(query(1.0, 0.25), node())
    assert reply.content["config"]["capacity"] == 0.25
    assert measured == [((1.0, 0.25), 60.0, 12)]


def test_a_node_that_measures_itself_has_one_batch_in_memory_at_a_time(measured):
    alive = WeakSet()

    def batches(context):
        for number in range(6):
            alive.add(batch := inputs(number))
            assert len(alive) <= 3  # the first, the last one and this one
            yield batch

    app = ClientApp()
    answer_queries(app, build, batches)
    app(query(1.0, 0.25), node())
    assert measured == [((1.0, 0.25), 60.0, 6)]


def test_a_run_gives_each_node_what_it_measured():
    """On the grid, with true measurements: the smallest rate is all that 1e-9 seconds allow."""

    def respond(message, context):
        return answer_capability(message, context, trial)

    budgets = [1e-9, 1e9]
    config = {"node_config": lambda partition: {"level": "auto", "round-seconds": budgets[partition]}}
    with Watched(make_app(capability=respond), 2, **config) as grid:
        strategy = HeteroFL(build, "b1-d1", evaluation=Evaluation(every=0))
        strategy.start(grid, num_rounds=1)
        (message, _) = grid.of("query.capability")
    assert strategy.log.rates == {0: 0.125, 1: 0.5}
    assert message.content["config"]["rates"] == [0.5, 0.125]


def test_a_message_of_an_older_version_is_refused_by_both_sides():
    old = ConfigRecord({"heterofl-schema": 0})
    message = Message(RecordDict({"config": old}), 2, "query.capability")
    with pytest.raises(ReplyError, match=r"the server sent messages of schema 0, expected 1: install the same version"):
        answer_capability(message, node(), trial)

    def stale(message, context):
        return Message(RecordDict({"config": old, "arrays": ArrayRecord()}), reply_to=message)

    with LocalGrid(make_app(odd={1: stale}), 2) as grid:
        strategy = HeteroFL(build, "a1", evaluation=Evaluation(every=0))
        strategy.start(grid, num_rounds=1)
    assert "sent messages of schema 0, expected 1: install the same version" in strategy.log.failures[1]
