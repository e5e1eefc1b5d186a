"""Clients that lie about their metrics: how far one of them moves what a run reports and decides by."""

import math

import pytest
from flwr.app import MetricRecord

from heterofl_flwr import Evaluation
from heterofl_flwr.client import Task
from heterofl_flwr.runs.scores import headline, headline_kind
from tests.federation import tiny
from tests.federation.tiny import make_app

HONEST = {"global-accuracy": 0.9, "local-accuracy": 0.8, "global-loss": 0.5, "accuracy": 93.2}
LIAR = 3


def lying(metrics=None, number=10, rounds=(1, 2, 3, 4)):
    """Return an evaluation in which the liar says something of its own in some rounds; all others improve slowly."""

    def evaluate(message, context):
        server_round = message.content["config"]["server-round"]
        if context.node_config["partition-id"] == LIAR and server_round in rounds:
            return Task(message, context, tiny.build).reply(num_examples=number, metrics={**HONEST, **(metrics or {})})
        gain = 0.01 * (server_round - 1)
        own = {name: value - gain if "loss" in name else value + gain for name, value in HONEST.items()}
        return Task(message, context, tiny.build).reply(num_examples=10, metrics=own)

    return evaluate


def play(evaluate, num_rounds=1, nodes=5, callbacks=(), **options):
    options = {"evaluation": Evaluation(), "callbacks": callbacks, **options}
    found = tiny.play(make_app(evaluate=evaluate), "a1", nodes, num_rounds, **options)
    return found.log, found.result


@pytest.mark.parametrize("value", [7.0, math.nan])
def test_a_false_accuracy_is_in_no_mean_and_never_the_worst(value):
    record, _ = play(lying({"global-accuracy": value, "local-accuracy": -value}))
    assert record.evaluate["global-accuracy"] == pytest.approx(0.9)
    assert record.evaluate["local-accuracy"] == pytest.approx(0.8)
    assert record.evaluate["worst-accuracy"] == 0.8
    assert record.worst_client == 0
    assert record.accuracy_deciles == pytest.approx([0.8] * 9)


def test_the_median_of_clients_stands_beside_the_mean():
    def evaluate(message, context):
        number = context.node_config["partition-id"]
        metrics = {"loss": [1.0, 2.0, 4.0, math.nan, 100.0][number], "local-accuracy": 1.0}
        return Task(message, context, tiny.build).reply(num_examples=0 if number == 4 else 1 + number, metrics=metrics)

    record, _ = play(evaluate)
    assert record.evaluate["loss"] == pytest.approx((1 + 2 * 2 + 3 * 4) / 6)
    assert record.evaluate_medians == {"loss": 2.0, "local-accuracy": 1.0}


def test_what_the_server_finds_decides_in_place_of_the_median(tmp_path):
    def largest(contents, key):
        return MetricRecord({"global-loss": max(content["metrics"]["global-loss"] for content in contents)})

    record, _ = play(lying({"global-loss": 3.0}), evaluate_metrics_aggr_fn=largest)
    assert record.comparable["global-loss"] == 3.0
    assert record.comparable["accuracy"] == record.evaluate_medians["accuracy"]
    central = {"evaluate_fn": lambda number, arrays: MetricRecord({"global-loss": 9.0})}
    assert play(lying(), nodes=2, start=central)[0].comparable["global-loss"] == 9.0


def test_what_the_server_computes_from_few_answers_is_never_the_best():
    def evaluate(message, context):
        if context.node_config["partition-id"]:
            raise RuntimeError("the disk is full")
        return Task(message, context, tiny.build).reply(num_examples=10, metrics=HONEST)

    def compute(contents, key):
        return MetricRecord({"best-accuracy": 1.0})

    record, _ = play(evaluate, evaluate_metrics_aggr_fn=compute)
    assert record.evaluate["best-accuracy"] == 1.0
    assert record.comparable.keys() == {"coverage"}


@pytest.mark.parametrize("level", ["", "/1.0"])
def test_a_metric_of_one_client_is_not_the_headline(level, caplog):
    """A perplexity from one of ten became the metric that runs and sweeps are compared by."""
    names = ["global-perplexity", "perplexity", "local-perplexity", "x-perplexity"]
    record, _ = play(lying({f"{name}{level}": 1e-9 for name in names}), nodes=9)
    assert headline([record]) == "global-accuracy"
    assert headline_kind([record]) == "accuracy"
    assert all(name in caplog.text for name in names)
    assert record.evaluate.keys() == {*HONEST, "coverage", "worst-accuracy"}


def test_a_training_metric_of_one_client_is_in_no_record():
    def train(message, context):
        metrics = {"loss": 1.0, **({"perplexity": 1e-9} if context.node_config["partition-id"] == LIAR else {})}
        task = Task(message, context, tiny.build)
        return task.reply(task.model(), num_examples=10, metrics=metrics)

    log = tiny.play(make_app(train), "a1", 5, 1).log
    assert log.train == {"loss": 1.0}
    assert list(log.train_by_level.values()) == [{"loss": 1.0}]


def test_a_metric_of_half_of_the_clients_counts():
    def evaluate(message, context):
        metrics = {"perplexity": 9.0} if context.node_config["partition-id"] % 2 else {"f1": 0.5}
        return Task(message, context, tiny.build).reply(num_examples=10, metrics=metrics)

    record, _ = play(evaluate, nodes=4)
    assert record.evaluate["perplexity"] == 9.0
    assert headline([record]) == "perplexity"
    record, _ = play(evaluate, nodes=5)  # 2 of 5
    assert record.evaluate == {"coverage": 1.0, "f1": 0.5}


def test_a_metric_with_the_name_of_the_servers_is_left_out_with_a_warning(caplog):
    def evaluate(message, context):
        return Task(message, context, tiny.build).reply(num_examples=10, metrics={"coverage": 0.9, "f1": 0.5})

    assert play(evaluate, nodes=2)[0].evaluate == {"coverage": 1.0, "f1": 0.5}
    assert "the metric coverage of clients is left out" in caplog.text
