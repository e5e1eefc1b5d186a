"""Replies that cannot be used, by mistake or in bad faith: each is rejected whole, with its cause, and named."""

import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import Evaluation, HeteroFL, HeteroFLError, Limits, LocalGrid, packing
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.errors import RoundError
from heterofl_flwr.federation.records import Tally
from heterofl_flwr.stages.compress import compress
from tests.federation.tiny import add_one, bare_reply, build, check_gain, config, crash, equal, make_app, play

GOOD = MetricRecord({"num-examples": 1})


def trained(message, change=lambda state: state, metrics=GOOD, **said):
    """Return a reply whose model is as it came, but for what ``change`` does to its state."""
    record = ArrayRecord(change(dict(submodel(message, build).state_dict())))
    return bare_reply(message, arrays=record, config=config(**said), metrics=metrics)


def with_state(change):
    return lambda message, context: trained(message, change)


def with_entry(name, value):
    return with_state(lambda state: {**state, name: value})


def with_numbers(**values):
    metrics = MetricRecord({"num-examples" if key == "num_examples" else key: own for key, own in values.items()})
    return lambda message, context: trained(message, metrics=metrics)


def says(**values):
    return lambda message, context: trained(message, **values)


def raw(name, array):
    def train(message, context):
        answer = trained(message)
        answer.content["arrays"][name] = array
        return answer

    return train


def of_bytes(data, dtype="float32"):
    """Return a client whose array is these bytes."""
    return raw("hidden.bias", Array(dtype, (8,), "numpy.ndarray", data))


def without(record):
    def train(message, context):
        answer = trained(message)
        del answer.content[record]
        return answer

    return train


def npy(shape, data=b""):
    """Return bytes that claim to be an array."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def compressed(upload, change):
    """Return a client whose reply is in a compressed form, but for what ``change`` does to its records."""

    def train(message, context):
        before = message.content["arrays"].to_torch_state_dict()
        changes = compress(before, {name: tensor + 1 for name, tensor in before.items()}, upload, seed=0)
        answer = bare_reply(
            message, config=config(upload=upload), metrics=GOOD, **packing.pack_trained(*changes, upload)
        )
        change(answer.content)
        return answer

    return train


def with_array(record, name, value):
    return lambda content: content[record].__setitem__(name, Array(np.asarray(value)))


def raw_array(record, name, data):
    return lambda content: content[record].__setitem__(name, Array("int8", (8,), "numpy.ndarray", data))


def calls_itself(upload):
    return lambda content: content["config"].__setitem__("upload", upload)


def lacks(record):
    return lambda content: content.__delitem__(record)


def with_record(name):
    return lambda content: content.__setitem__(name, ArrayRecord({"w": torch.ones(1)}))


FAULTS = {
    "raises": (crash, "error 2: .*the disk is full"),
    "gives up": (lambda message, context: None, "error 2: .*returned a NoneType"),
    "broadcastable": (with_entry("hidden.bias", torch.ones(1)), r"hidden.bias has shape \(1,\), expected \(8,\)"),
    "NaN": (with_entry("hidden.bias", torch.full((8,), torch.nan)), "hidden.bias contains NaN or infinity"),
    "text array": (raw("hidden.bias", Array(np.array(["a"] * 8))), "arrays that cannot be read: TypeError"),
    "pickled": (of_bytes(b"\x80\x04.", "object"), "cannot be read: .*magic string"),
    "truncated": (of_bytes(npy("(8,)", b"12")), "cannot be read"),
    "huge": (of_bytes(npy("(99999999999999,)")), "cannot be read"),
    "a zip": (of_bytes(b"PK\x03\x04junk"), "cannot be read"),
    "large": (of_bytes(b"x" * 5000), "sent 5,000 bytes as 'hidden.bias', expected up to 1,088"),
    "no arrays": (without("arrays"), r"sent records \[\], expected arrays alone"),
    "no metrics": (without("metrics"), "sent no metrics record"),
    "no config": (without("config"), "its ClientApp is not converted: let it call answer_queries once, submodel"),
    "other schema": (says(heterofl_schema=2), "schema 2, expected 1: install the same version"),
    "no number": (with_numbers(loss=1.0), "None as num-examples, expected a whole number from 0 up"),
    "half a number": (with_numbers(num_examples=1.5), "1.5 as num-examples"),
    "negative number": (with_numbers(num_examples=-1), "-1 as num-examples"),
    "number list": (with_numbers(num_examples=[1, 2]), r"\[1, 2\] as num-examples"),
    "all examples": (with_numbers(num_examples=10**15), "10{15} as num-examples, expected .* up to 10,000,000"),
    "no float": (with_numbers(num_examples=10**400), "sent 1000.* as num-examples"),
    "label too large": (says(labels=[0, 4]), r"labels \[4\] are out of range: expected whole numbers from 0 to 3"),
    "labels no list": (says(labels="0,1"), "'0,1' as labels, expected a list"),
    "many labels": (says(labels=[1] * 5000), "5000 labels, expected up to 4"),
    "capacity text": (says(capacity="b"), "'b' as capacity, expected float"),
    "capacity zero": (says(capacity=0.0), "the capacity it reports is not usable: a rate of 0.0"),
    "capacity NaN": (says(capacity=float("nan")), "the capacity it reports is not usable"),
    "many names": (
        with_state(lambda state: {**state, **{f"junk{number}": torch.zeros(0) for number in range(5000)}}),
        "5000 names are not in its plan",
    ),
    "huge entries": (with_entry("hidden.bias", torch.full((8,), 3e38)), r"entries up to 3e\+38, expected up to 1e\+15"),
    "many metrics": (
        with_numbers(num_examples=1, **{f"metric{number}": 1.0 for number in range(1000)}),
        "sent 1000 metrics, expected up to 100",
    ),
    "long name": (with_numbers(num_examples=1, **{"x" * 1000: 1.0}), "sent a metric named 'xxx"),
    "escape": (with_numbers(num_examples=1, **{"\x1b[2J": 1.0}), r"sent a metric named '\\x1b"),
    "far": (
        with_state(lambda state: {name: own + 10 for name, own in state.items()}),
        "its change has an L2 norm of 82.46, expected up to 50",
    ),
}
CHANGES, BOTH = "expected changes alone", "expected changes and scales alone"
COMPRESSED = {
    "unknown form": ("int8", calls_itself("int4"), "'int4' as upload, expected one of float32, float16, int8"),
    "no text": ("int8", calls_itself([1]), r"\[1\] as upload"),
    "calls itself float32": ("int8", calls_itself("float32"), r"\['changes', 'scales'\], expected arrays alone"),
    "calls itself float16": ("int8", calls_itself("float16"), CHANGES),
    "calls itself int8": ("float16", calls_itself("int8"), rf"sent records \['changes'\], {BOTH}"),
    "parameters": ("int8", with_record("arrays"), rf"'arrays'\], {BOTH}"),
    "no changes": ("float16", lacks("changes"), rf"sent records \[\], {CHANGES}"),
    "no scales": ("int8", lacks("scales"), BOTH),
    "extra record": ("float16", with_record("more"), rf"'more'\], {CHANGES}"),
    "extra scales": ("int8", with_array("scales", "more", [1.0]), r"\['scales', 'more'\] in record scales"),
    "broadcastable": ("int8", with_array("changes", "hidden.bias", np.int8([1])), r"hidden.bias has shape \(1,\)"),
    "no number": ("int8", with_array("changes", "hidden.bias", np.int8(1)), r"hidden.bias has shape \(\)"),
    "text": ("int8", with_array("changes", "hidden.bias", ["a"] * 8), "arrays that cannot be read"),
    "junk": ("int8", raw_array("changes", "hidden.bias", b"junk"), "arrays that cannot be read"),
    "junk scales": ("int8", raw_array("scales", "scales", b"junk"), "arrays that cannot be read"),
    "one scale": ("int8", with_array("scales", "scales", np.float32(1)), r"of shape \(\), expected .*\(14,\)"),
    "double scales": ("int8", with_array("scales", "scales", np.ones(14)), "scales are torch.float64"),
    "huge scales": ("int8", with_array("scales", "scales", np.float32([3e38] * 14)), "contains NaN or infinity"),
}
BAD = [*FAULTS.values(), *((compressed(upload, change), cause) for upload, change, cause in COMPRESSED.values())]


def test_replies_that_cannot_be_used_are_rejected_whole_and_named_and_change_no_bit():
    """Two good clients and one for each fault, in one round."""
    limits = Limits(norm_bound=50)
    odd = {number: train for number, (train, _) in enumerate(BAD, 2)}
    with_bad = play(make_app(odd=odd), nodes=2 + len(BAD), limits=limits, min_replies=2)
    without_bad = play(make_app(odd=dict.fromkeys(odd, crash)), nodes=2 + len(BAD), limits=limits, min_replies=2)
    assert equal(with_bad.state, without_bad.state)
    check_gain(with_bad.strategy, with_bad.state, 1.5)
    assert list(with_bad.log.failures) == list(odd)
    for number, (_, cause) in enumerate(BAD, 2):
        assert re.search(cause, with_bad.log.failures[number]), (number, cause)
    rejected = {number for number, fault in with_bad.log.failures.items() if not fault.startswith("error 2")}
    assert set(with_bad.log.refused) == rejected == set(odd) - {2, 3}
    assert with_bad.strategy.tally.refused == dict.fromkeys(rejected, 1)


@pytest.mark.parametrize("kind", ["raises", "NaN", "no metrics"])
def test_a_round_where_all_fail_ends_the_run_and_names_the_causes(kind):
    train, cause = FAULTS[kind]
    with pytest.raises(
        RoundError, match=rf"(?s)round 1: 0 of 2 clients .* partition 0: .*{cause}.*partition 1: "
    ) as info:
        play(make_app(train), nodes=2)
    assert isinstance(info.value, AggregationError)  # Flower's own error, and ours
    assert isinstance(info.value, HeteroFLError)


def test_a_client_that_counts_no_examples_still_counts_as_one_client():
    run = play(make_app(odd={1: with_numbers(num_examples=0)}), nodes=2)
    strategy, state = run.strategy, run.state
    assert strategy.log.failures == {}
    torch.testing.assert_close(state["hidden.bias"], strategy.federation.initial_state()["hidden.bias"] + 0.5)
    assert strategy.log.train["loss"] == 0.0


def test_a_floor_above_the_number_of_clients_says_so_before_anybody_trains():
    asked = []
    app = make_app(lambda message, context: asked.append(message))
    with pytest.raises(RoundError, match=r"round 1: 3 clients take part, and it needs replies of 4 \(min_replies or"):
        play(app, min_replies=4)
    assert asked == []


def test_replies_to_what_was_not_configured_are_refused():
    with LocalGrid(make_app(), 1) as grid:
        strategy = HeteroFL(build, min_available_nodes=1)
        with pytest.raises(RoundError, match="the round was not configured"):
            strategy.aggregate_train(1, [])
        sent = strategy.configure_train(1, ArrayRecord(strategy.federation.initial_state()), config(), grid)
        strategy.aggregate_train(1, grid.send_and_receive(sent))
        with pytest.raises(RoundError, match="the round was not configured"):
            strategy.aggregate_train(1, [])


def test_a_reply_in_few_bits_is_held_to_the_bound_too():
    assert list(play(upload="int8", limits=Limits(norm_bound=20)).log.failures) == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_a_metric_that_is_no_usable_number_does_not_reach_the_mean_of_the_others(value, caplog):
    found = play(make_app(odd={1: with_numbers(num_examples=1, loss=value)}))
    assert found.log.train == {"loss": pytest.approx((0 * 1 + 2 * 3) / 4)}
    assert "which counts in no mean" in caplog.text


def test_what_the_server_finds_out_is_not_for_clients_to_say():
    def evaluate(message, context):
        metrics = {"coverage": 9.0, "local-accuracy": 0.5, "output/1e-300": 1.0}
        return reply(message, num_examples=1, metrics=metrics)

    found = play(make_app(evaluate=evaluate), nodes=2, evaluation=Evaluation())
    expected = {"coverage": 1.0, "local-accuracy": 0.5, "worst-accuracy": 0.5}
    assert found.log.evaluate == {**expected, "output/1e-300": 1.0}  # a name like any other
    assert found.log.evaluate_by_level == {}


def test_a_client_is_not_drawn_after_so_many_refusals_in_a_row():
    found = play(make_app(odd={1: FAULTS["large"][0]}), num_rounds=4, limits=Limits(refusals=2))
    strategy, records = found.strategy, found.records
    assert [sorted(record.rates) for record in records] == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2]]
    assert strategy.tally.suspended(2) == {1}
    again = Tally(records)
    assert (again.refused, again.in_a_row) == (strategy.tally.refused, strategy.tally.in_a_row)


def test_a_good_reply_ends_the_row_and_failing_is_no_refusal():
    def sometimes(message, context):
        number = message.content["config"]["server-round"]
        if number == 3:
            crash(message, context)
        return add_one(message, context) if number == 2 else FAULTS["large"][0](message, context)

    found = play(make_app(odd={1: sometimes}), num_rounds=4, limits=Limits(refusals=3))
    strategy, records = found.strategy, found.records
    assert [list(record.refused) for record in records] == [[1], [], [], [1]]
    assert strategy.tally.refused == {1: 2}
    assert strategy.tally.in_a_row == {1: 1}


def test_where_no_client_is_left_a_round_fails():
    with LocalGrid(make_app(), 2) as grid:
        strategy = HeteroFL(build, "a1", limits=Limits(refusals=1))
        for partition in range(2):
            strategy.tally.refuse(partition)
        with pytest.raises(RoundError, match="none of 2 clients can train: 2 had 1 replies refused in a row"):
            strategy.configure_train(1, ArrayRecord(strategy.federation.initial_state()), config(), grid)


def test_a_reply_to_an_earlier_round_is_dropped():
    kept = []

    class Replaying(LocalGrid):
        """Node 1 answers the second round with its reply to the first."""

        def send_and_receive(self, messages, *, timeout=None):
            replies = list(super().send_and_receive(messages, timeout=timeout))
            if replies[0].content.get("arrays"):
                kept.append(replies[1])
                replies[1] = kept[0]
            return replies

    records = play(num_rounds=2, grid=Replaying).records
    assert [record.failures for record in records] == [{}, {1: "no reply in time"}]
