"""What clients are asked where they do not evaluate, or cannot: nothing, or once."""

from collections import Counter

from flwr.app import MetricRecord
from flwr.clientapp import ClientApp

from heterofl_flwr import Evaluation
from heterofl_flwr.client import answer_queries
from tests.federation.tiny import add_one, build, build_normed, inputs, judge, make_app, play


def _data(context):
    return [inputs(context.node_config["partition-id"])]


def bare_app(*, evaluates=False, moments=False):
    """Return an app with a handler to train, and with no other but these."""
    app = ClientApp()
    answer_queries(app, build_normed, _data if moments else None)
    app.train()(lambda message, context: add_one(message, context, build=build_normed))
    if evaluates:
        app.evaluate()(lambda message, context: judge(message, context, build=build_normed))
    return app


def run(app, build=build, nodes=3, evaluate_fn=None, **options):
    """Return how often each kind of message was sent in each round, and the records."""
    options = {"evaluation": Evaluation(), "start": {"evaluate_fn": evaluate_fn}, **options}
    found = play(app, nodes=nodes, num_rounds=3, build=build, **options)
    sent = [message for message in found.grid.sent if message.metadata.message_type != "query.capability"]
    return Counter((m.metadata.message_type, m.content["config"]["server-round"]) for m in sent), found.records


def test_every_message_says_its_round_for_mods_that_read_it():
    sent = play(make_app(build=build_normed), build=build_normed, evaluation=Evaluation()).grid.sent
    assert {message.metadata.message_type for message in sent} >= {"query.capability", "query.moments", "train"}
    assert all(message.content["config"]["server-round"] == 1 for message in sent)


def test_with_a_fraction_of_none_the_server_evaluates_alone():
    options = {"evaluate_fn": lambda number, arrays: MetricRecord({"global-accuracy": number / 10})}
    sent, records = run(make_app(build=build_normed), build_normed, fraction_evaluate=0.0, **options)
    assert {kind for kind, _ in sent} == {"train"}
    assert [record.evaluate for record in records] == [{"global-accuracy": number / 10} for number in (1, 2, 3)]
    assert all(not record.evaluate_failures and not record.partial for record in records)


def test_an_app_without_evaluate_is_asked_once(caplog):
    sent, records = run(bare_app(), build_normed, evaluation=Evaluation(static_norm=False))
    assert sent["evaluate", 1] == 3
    assert ("evaluate", 2) not in sent
    assert caplog.text.count("fraction_evaluate=0.0") == 1
    assert "3 of 3 clients have no handler" in caplog.text
    assert all(record.evaluate == {} and not record.evaluate_failures for record in records)
    assert all(record.evaluate_asked == 0 for record in records)


def test_an_app_without_moments_is_asked_once_and_evaluates(caplog):
    sent, records = run(bare_app(evaluates=True), build_normed)
    assert (sent["query.moments", 1], sent["query.moments", 2]) == (3, 0)
    assert [sent["evaluate", number] for number in (1, 2, 3)] == [3, 3, 3]
    assert caplog.text.count("Evaluation(static_norm=False)") == 1
    assert records[-1].evaluate["coverage"] == 1.0


def test_a_client_that_lacks_a_handler_costs_the_others_nothing():
    def lacks(message, context):
        if context.node_config["partition-id"] == 1:
            raise ValueError("No evaluate function registered with name 'default'")
        return judge(message, context)

    sent, records = run(make_app(evaluate=lacks))
    assert [sent["evaluate", number] for number in (1, 2, 3)] == [3, 2, 2]
    assert [record.evaluate["coverage"] for record in records] == [2 / 3] * 3
    assert not any(record.partial for record in records)
