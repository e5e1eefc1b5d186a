"""Evaluation: when, on which nodes, on which models, and what the answers add up to."""

import re
from contextlib import nullcontext

import pytest
import torch
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict

from heterofl_flwr import Evaluation, HeteroFL
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError, RoundError
from heterofl_flwr.core.randomness import initial_state
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.nn import collect_moments, with_static_norm
from tests.federation.tiny import bare_reply, build, build_normed, config, crash, inputs, make_app, play


def mine(records, key):
    return MetricRecord({"mine": 1.0})


def run(app=None, nodes=2, num_rounds=1, evaluate_fn=None, **evaluation):
    options = {"evaluation": Evaluation(**evaluation), "start": {"evaluate_fn": evaluate_fn}}
    return play(app, "a1-c1", nodes, num_rounds, **options)


@pytest.mark.parametrize(
    ("every", "num_rounds", "rounds"), [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]), (10, 3, [3]), (0, 3, [])]
)
def test_every_k_rounds_and_after_the_last(every, num_rounds, rounds):
    central = []
    found = run(num_rounds=num_rounds, every=every, evaluate_fn=lambda number, _: central.append(number))
    assert list(found.result.evaluate_metrics_clientapp) == rounds
    assert central == ([0, *rounds] if every else [])


def test_replies_to_an_evaluation_of_a_subclass_alone_are_an_error():
    class Own(HeteroFL):
        def configure_evaluate(self, server_round, arrays, config, grid):
            content = RecordDict({"arrays": arrays, "config": config})
            return [Message(content, node_id, "evaluate") for node_id in grid.get_node_ids()]

    with pytest.raises(RoundError, match=r"no evaluation .* was configured: .* call super\(\).configure_evaluate"):
        play(kind=Own, evaluation=Evaluation())


def test_all_nodes_evaluate_the_global_model():
    found = run(nodes=4)
    sent = found.grid.of("evaluate")
    assert [message.content["config"]["rate"] for message in sent] == [1.0] * 4
    assert [list(message.content["config"]["rates"]) for message in sent] == [[1.0]] * 4
    assert len({id(message.content["arrays"]) for message in sent}) == 1
    # Partitions 0 to 3 have an accuracy of one over their number plus one, and as many examples: the mean is 4 / 10.
    metrics = found.result.evaluate_metrics_clientapp[1]
    assert metrics["local-accuracy"] == pytest.approx(0.4)
    assert metrics["worst-accuracy"] == pytest.approx(0.25)
    assert metrics["coverage"] == 1.0
    assert found.log.evaluate == dict(metrics)


LEVELS = {0: "a", 1: "b", 2: "e", 3: "b"}


def capable(nodes=LEVELS, metrics=None, **options):
    node_config = {number: {"level": level} for number, level in nodes.items()}.__getitem__
    more = {"evaluation": Evaluation(**options), "evaluate_metrics_aggr_fn": metrics}
    found = play(None, "a1-b1-c1", len(nodes), node_config=node_config, **more)
    asked = {found.grid.partition_of(m): list(m.content["config"]["rates"]) for m in found.grid.of("evaluate")}
    return found.strategy, asked


@pytest.mark.parametrize(
    ("levels", "expected"),
    [(True, {0: [1.0, 0.5, 0.25], 1: [0.5, 0.25], 3: [0.5, 0.25]}), (False, {0: [1.0], 1: [0.5], 3: [0.5]})],
)
def test_capable_nodes_evaluate_the_levels_that_they_can_hold(levels, expected):
    strategy, asked = capable(levels=levels)
    assert asked == expected
    assert strategy.log.evaluate["coverage"] == 0.25
    assert strategy.log.evaluate["local-accuracy"] == 1.0  # of partition 0, which alone held the global model
    assert strategy.log.evaluate_by_level["b"]["local-accuracy"] == pytest.approx((2 / 2 + 4 / 4) / (2 + 4))


def test_a_metrics_function_sees_the_global_model_alone():
    def count(records, key):
        return MetricRecord({"clients": len(records), "local-accuracy": records[0]["metrics"]["local-accuracy"]})

    strategy, asked = capable(levels=True, metrics=count)
    assert len(asked) == 3
    assert (strategy.log.evaluate["clients"], strategy.log.evaluate["local-accuracy"]) == (1, 1.0)
    assert "clients" not in capable({0: "b", 1: "c"}, levels=True, metrics=count)[0].log.evaluate


def test_metrics_that_are_lists_are_in_no_mean_and_go_to_the_users_function(caplog):
    def evaluate(message, context):
        return Task(message, context, build).reply(num_examples=4, metrics={"accuracy": 0.5, "by-class": [0.25, 0.75]})

    def first(records, key):
        return MetricRecord({"by-class": records[0]["metrics"]["by-class"]})

    app, options = make_app(evaluate=evaluate), {"nodes": 2, "evaluation": Evaluation()}
    found = play(app, evaluate_metrics_aggr_fn=first, **options)
    assert found.result.evaluate_metrics_clientapp[1]["by-class"] == [0.25, 0.75]
    assert "by-class" not in caplog.text
    assert play(app, **options).log.evaluate == {"coverage": 1.0, "accuracy": 0.5}
    assert caplog.text.count("by-class") == 1


@pytest.mark.parametrize(("number", "function", "warns"), [(4, None, True), (0, None, False), (4, mine, False)])
def test_clients_that_evaluate_without_a_metric_are_a_warning(caplog, number, function, warns):
    def evaluate(message, context):
        return Task(message, context, build).reply(num_examples=number)

    play(make_app(evaluate=evaluate), evaluate_metrics_aggr_fn=function, evaluation=Evaluation())
    assert ("reported no number that measures it" in caplog.text) == warns


def test_where_no_node_is_capable_the_run_goes_on(caplog):
    strategy, asked = capable({0: "d", 1: "e"})
    assert asked == {}
    assert strategy.log.evaluate == {"coverage": 0.0}
    assert "none of 2 clients can hold a model to evaluate" in caplog.text


def bad(**metrics):
    return lambda message, context: bare_reply(message, metrics=MetricRecord(metrics), config=config())


BAD = [
    (crash, "error 2.*the disk is full"),
    (lambda message, context: bare_reply(message, config=config()), "sent no metrics record"),
    (bad(loss=0.5), "None as num-examples"),
    (bad(**{"num-examples": -3}), "-3 as num-examples"),
    (bad(**{"num-examples": 0.5}), "0.5 as num-examples"),
]


def test_evaluations_that_cannot_be_used_are_left_out_and_named():
    def sometimes(message, context):
        partition = context.node_config["partition-id"]
        if partition < len(BAD):
            return BAD[partition][0](message, context)
        return Task(message, context, build).reply(num_examples=2, metrics={"local-accuracy": 0.5})

    log = run(make_app(evaluate=sometimes), len(BAD) + 1).log
    assert log.evaluate["local-accuracy"] == 0.5
    for (_, named), (_, found) in zip(BAD, sorted(log.evaluate_failures.items()), strict=True):
        assert re.search(named, found)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028"])
def test_an_error_of_a_client_forges_no_line_of_the_log(end, caplog):
    def evaluate(message, context):
        return Message(Error(0, f"no data{end}round 9: clients=9/9"), reply_to=message)

    log = run(make_app(evaluate=evaluate), 2).log
    (reason, _) = log.evaluate_failures.values()
    assert "no data" in reason
    assert "round 9" in caplog.text
    assert not re.search(r"^round 9|[\r\u2028]", "\n".join([reason, *caplog.messages]), re.MULTILINE)


def judged(answering, nodes=5, evaluate_fn=None, **options):
    """Return the last record of a run in which only these partitions answer an evaluation."""

    def evaluate(message, context):
        if context.node_config["partition-id"] not in answering:
            crash(message, context)
        return Task(message, context, build).reply(
            num_examples=1, metrics={"local-accuracy": 1.0, "global-accuracy": 0.9}
        )

    options = {"evaluation": Evaluation(), **options}
    return play(make_app(evaluate=evaluate), nodes=nodes, start={"evaluate_fn": evaluate_fn}, **options).log


def test_metrics_of_fewer_than_half_of_the_asked_are_marked(caplog):
    assert judged({0, 1}, nodes=4).partial == ()
    record = judged({0, 1})
    assert (record.evaluate_answers, record.evaluate_asked) == (2, 5)
    assert record.few_answered
    assert set(record.partial) == {"local-accuracy", "global-accuracy", "worst-accuracy"}
    assert record.comparable == {"coverage": 0.4}
    assert "only 2 of 5 clients evaluated" in caplog.text


def test_what_the_server_measures_itself_is_not_marked():
    record = judged({0}, evaluate_fn=lambda number, arrays: MetricRecord({"global-accuracy": 0.5}))
    assert record.comparable == {"coverage": 0.2, "global-accuracy": 0.5}
    assert record.few_answered


def test_a_users_own_names_of_metrics_may_hold_slashes():
    metrics = {"eval/loss": 2.0, "top/5": 0.9, "precision/class 1": 0.7, "accuracy/0.25": 0.5}

    def evaluate(message, context):
        return Task(message, context, build).reply(num_examples=4, metrics=metrics)

    strategy = play(make_app(evaluate=evaluate), "a1-c1", 2, evaluation=Evaluation()).strategy
    assert strategy.log.evaluate == {"coverage": 1.0, **metrics}
    assert strategy.log.evaluate_by_level == {}
    strategy = play(make_app(evaluate=evaluate), "a1-c1", 2, evaluation=Evaluation(levels=True)).strategy
    del metrics["accuracy/0.25"]  # which these clients were asked for
    assert strategy.log.evaluate == {"coverage": 1.0, **metrics}
    assert strategy.log.evaluate_by_level == {"c": {"accuracy": 0.5}}


@pytest.mark.parametrize("measured", [True, False])
def test_the_server_does_not_evaluate_batch_norm_without_statistics(measured):
    def central(server_round, arrays: ArrayRecord):
        model = build_normed(1.0)
        model.load_state_dict(arrays.to_torch_state_dict(), strict=False)
        if measured:
            model = with_static_norm(model, collect_moments(model, [inputs(0)]))
        return MetricRecord({"global-output": model.eval()(inputs(0)).mean().item()})

    app, options = make_app(build=build_normed), {"build": build_normed, "evaluation": Evaluation()}
    with nullcontext() if measured else pytest.raises(ConfigError, match="evaluate_fn evaluates BatchNorm1d with"):
        play(app, nodes=2, start={"evaluate_fn": central}, **options)
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_run_that_goes_on_does_not_evaluate_its_start_again():
    central = []
    resume = RunState(server_round=1, state=initial_state(build, 1.0, 0))
    start = {"resume": resume, "evaluate_fn": lambda number, _: central.append(number)}
    play(nodes=2, num_rounds=2, evaluation=Evaluation(), start=start)
    assert central == [2]


def test_a_client_that_evaluates_one_model_where_each_level_is_asked_for_is_told_how(caplog):
    def evaluate(message, context):
        task = Task(message, context, build)
        task.model()
        return task.reply(num_examples=1, metrics={"local-accuracy": 0.5})

    play(mix="a1-c1", nodes=2, evaluation=Evaluation(levels=True))
    assert "task.models()" not in caplog.text
    play(make_app(evaluate=evaluate), "a1-c1", 2, evaluation=Evaluation(levels=True))
    assert "task.models()" in caplog.text
