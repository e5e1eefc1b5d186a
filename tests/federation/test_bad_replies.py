"""Replies that cannot be used, by mistake or in bad faith: each is rejected whole, with its cause, and named."""

import re

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import Evaluation, HeteroFL, Limits
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.strategies import train_hooks
from heterofl_flwr.transport.messages import SCHEMA, SCHEMA_KEY
from tests.federation.tiny import bare_reply, build, config, crash, equal, make_app, play

GOOD = MetricRecord({"num-examples": 1})


def changed(change):
    """Return a client whose model is as it came, but for what ``change`` does to its reply."""

    def train(message, context):
        record = ArrayRecord(dict(Task(message, context, build).model().state_dict()))
        answer = bare_reply(message, arrays=record, config=config(), metrics=MetricRecord(dict(GOOD)))
        change(answer.content)
        return answer

    return train


def put(record, name, value):
    return lambda content: content[record].__setitem__(name, value)


def entry(value, name="hidden.bias", record="arrays"):
    return put(record, name, Array(np.asarray(value)))


def raw(data, name="hidden.bias", record="arrays"):
    return put(record, name, Array("float32", (8,), "numpy.ndarray", data))


def lacks(record):
    return lambda content: content.__delitem__(record)


def with_numbers(**values):
    return changed(lambda content: content.__setitem__("metrics", MetricRecord(values)))


FAULTS = {
    "raises": (crash, "error 2: .*the disk is full"),
    "NaN": (changed(entry(np.float32([np.nan] * 8))), "hidden.bias contains NaN or infinity"),
    "pickled": (changed(raw(b"\x80\x04.")), "arrays that cannot be read: .*magic string"),
    "more bytes": (changed(raw(Array(np.ones(8, np.float32)).data + b"more")), "36 bytes of values, expected 32"),
    "large": (changed(raw(b"x" * 5000)), "sent 5,000 bytes as 'hidden.bias', expected up to 1,088"),
    "no arrays": (changed(lacks("arrays")), r"sent records \[\], expected arrays alone"),
    "no metrics": (changed(lacks("metrics")), "sent no metrics record"),
    "no config": (changed(lacks("config")), "its ClientApp is not converted: let it call answer_queries\\(app"),
    "schema": (
        changed(put("config", SCHEMA_KEY, SCHEMA + 1)),
        f"schema {SCHEMA + 1}, expected {SCHEMA}: install the same version",
    ),
    "examples": (with_numbers(**{"num-examples": 10**15}), "10{15} as num-examples, expected .* up to 10,000,000"),
    "capacity zero": (changed(put("config", "capacity", 0.0)), "the capacity it reports is not usable: a rate of 0.0"),
    "metrics": (
        with_numbers(**{"num-examples": 1} | dict.fromkeys(map(str, range(1000)), 1.0)),
        "1000 metrics, expected",
    ),
    "long name": (with_numbers(**{"num-examples": 1, "x" * 1000: 1.0}), "sent a metric named 'xxx"),
    "far": (changed(entry(np.full(8, 100, np.float32))), "its change has an L2 norm of .*, expected up to 50 "),
}


def test_what_cannot_be_used_is_refused_whole_and_named():
    """Two good clients and one for each fault, in one round."""
    options = {"nodes": 2 + len(FAULTS), "limits": Limits(norm_bound=50), "min_replies": 2}
    odd = {number: train for number, (train, _) in enumerate(FAULTS.values(), 2)}
    with_bad = play(make_app(odd=odd), **options)
    without_bad = play(make_app(odd=dict.fromkeys(odd, crash)), **options)
    assert equal(with_bad.state, without_bad.state)
    assert list(with_bad.log.failures) == list(odd)
    for (_, cause), found in zip(FAULTS.values(), with_bad.log.failures.values(), strict=True):
        assert re.search(cause, found), (cause, found)
    assert set(with_bad.log.refused) == set(odd) - {2}


@pytest.mark.parametrize("kind", ["raises", "NaN", "no metrics"])
def test_a_round_where_all_fail_names_the_causes(kind):
    train, cause = FAULTS[kind]
    with pytest.raises(RoundError, match=rf"(?s)round 1: 0 of 2 .* partition 0.*: .*{cause}") as info:
        play(make_app(train), nodes=2)
    assert isinstance(info.value, AggregationError)  # Flower's own error, and ours


def test_a_floor_above_the_clients_fails_before_they_train():
    asked = []
    app = make_app(lambda message, context: asked.append(message))
    with pytest.raises(RoundError, match=r"round 1: 3 clients, and replies of 4 are needed \(min_replies or"):
        play(app, min_replies=4)
    assert asked == []


def test_what_the_server_finds_out_is_not_for_clients_to_say():
    def evaluate(message, context):
        metrics = {"coverage": 9.0, "local-accuracy": 0.5, "output/1e-300": 1.0}
        return Task(message, context, build).reply(num_examples=1, metrics=metrics)

    found = play(make_app(evaluate=evaluate), nodes=2, evaluation=Evaluation())
    expected = {"coverage": 1.0, "local-accuracy": 0.5, "worst-accuracy": 0.5}
    assert found.log.evaluate == {**expected, "output/1e-300": 1.0}  # a name like any other
    assert found.log.evaluate_by_level == {}


def test_a_sole_holder_elsewhere_moves_the_model_a_bounded_way(monkeypatch):
    """Unless a bound is given: any of its own, or a large one for none."""
    far = changed(entry(np.full(8, 1e4, np.float32)))
    assert play(make_app(far), nodes=2).log.failures == {}
    monkeypatch.setattr(train_hooks, "crosses_superlink", lambda grid: True)
    with pytest.raises(RoundError, match=r"its change has an L2 norm of .*, expected up to \d.* \(norm_bound\)"):
        play(make_app(far), nodes=2)
    near = changed(entry(np.full(8, 5, np.float32)))
    assert play(make_app(near), nodes=2).log.failures == {}
    assert play(make_app(far), nodes=2, limits=Limits(norm_bound=1e15)).log.failures == {}


def test_replies_to_a_round_that_was_not_configured_are_refused():
    with pytest.raises(RoundError, match="the round was not configured"):
        HeteroFL(build).aggregate_train(1, [])
