"""Replies of bad faith: refused before they are read or before they count, and counted against their client."""

import math
import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from heterofl_flwr import Evaluation, HeteroFL, Limits, LocalGrid, messages
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.errors import ConfigError, HeteroFLError, ReplyError, RoundError
from heterofl_flwr.federation.limits import read_number, read_numbers, short
from heterofl_flwr.federation.nodes import Capability
from heterofl_flwr.federation.records import Tally
from heterofl_flwr.nn.moments import LayerMoments, Moments, check_possible
from heterofl_flwr.nn.static_norm import collect_moments
from heterofl_flwr.strategies.replies import in_order
from tests.federation.tiny import Keep, add_one, bare_reply, build, build_normed, config, equal, inputs, make_app

NEVER = Evaluation(every=0)


def play(train, nodes=3, num_rounds=1, grid=LocalGrid, **options):
    """Return the strategy and the state of a run in which node 1 trains in a way of its own."""
    keep = Keep()
    with grid(make_app(odd={1: train}), nodes) as own:
        strategy = HeteroFL(build, "a1", **{"evaluation": NEVER, "callbacks": [keep], **options})
        state = strategy.start(own, num_rounds=num_rounds).arrays.to_torch_state_dict()
    return strategy, state, keep.records


def crash(message, context):
    raise RuntimeError


@pytest.fixture(scope="module")
def without():
    """Return the state of a run in which node 1 gives no reply."""
    return play(crash)[1]


def trained(message, state=None, metrics=None, **said):
    own = submodel(message, build).state_dict() if state is None else state
    numbers = {"num-examples": 1} if metrics is None else metrics
    return bare_reply(message, arrays=ArrayRecord(own), metrics=MetricRecord(numbers), config=config(**said))


def with_state(change):
    return lambda message, context: trained(message, change(submodel(message, build).state_dict()))


def with_metrics(**values):
    return lambda message, context: trained(message, metrics={"num-examples": 1, **values})


def counting(number):
    return lambda message, context: trained(message, metrics={"num-examples": number})


def unreadable(times):
    """Return a reply that would fail to be read, if it were read."""

    def train(message, context):
        answer = trained(message)
        answer.content["arrays"]["hidden.bias"] = Array("float32", (8,), "numpy.ndarray", b"x" * times)
        return answer

    return train


HOSTILE = {
    "large": (unreadable(5000), "sent 5,000 bytes as 'hidden.bias', expected up to 1,088"),
    "many names": (
        with_state(lambda state: {**state, **{f"junk{number}": torch.zeros(0) for number in range(5000)}}),
        "5000 names are not in its plan",
    ),
    "huge entries": (
        with_state(lambda state: {**state, "hidden.bias": torch.full((8,), 3e38)}),
        r"hidden.bias has entries up to 3e\+38, expected up to 1e\+15",
    ),
    "all examples": (counting(10**15), "sent 1000000000000000 as num-examples, expected .* up to 10,000,000"),
    "no float": (counting(10**400), "sent 1000.* as num-examples"),
    "many metrics": (
        with_metrics(**{f"metric{number}": 1.0 for number in range(1000)}),
        "sent 1000 metrics, expected up to 100",
    ),
    "long name": (with_metrics(**{"x" * 1000: 1.0}), "sent a metric named 'xxx"),
    "escape": (with_metrics(**{"\x1b[2J": 1.0}), r"sent a metric named '\\x1b"),
    "many labels": (lambda message, context: trained(message, labels=[1] * 5000), "5000 labels, expected up to 4"),
    "far": (
        with_state(lambda state: {name: own + 10 for name, own in state.items()}),
        "its change has an L2 norm of 82.46, expected up to 50",
    ),
}


@pytest.mark.parametrize(("train", "cause"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_reply_leaves_the_model_as_without_its_client_to_the_bit(train, cause, without):
    strategy, state, (record,) = play(train, limits=Limits(norm_bound=50))
    assert equal(state, without)
    assert record.refused == (1,)
    assert list(record.failures) == [1]
    assert re.search(cause, record.failures[1])
    assert strategy.tally.refused == {1: 1}


def test_a_reply_within_the_bound_counts():
    # Node 2 adds 3 to each of 68 entries.
    strategy, _, _ = play(add_one, limits=Limits(norm_bound=3 * math.sqrt(68) + 1e-3))
    assert strategy.log.failures == {}
    strategy, _, _ = play(add_one, limits=Limits(norm_bound=3 * math.sqrt(68) - 1e-3))
    assert list(strategy.log.failures) == [2]


def test_a_reply_in_few_bits_is_held_to_the_bound_too():
    strategy, _, _ = play(
        lambda message, context: add_one(message, context), upload="int8", limits=Limits(norm_bound=20)
    )
    assert list(strategy.log.failures) == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_a_metric_that_is_no_usable_number_does_not_reach_the_mean_of_the_others(value, caplog):
    strategy, _, _ = play(with_metrics(loss=value))
    assert strategy.log.train == {"loss": pytest.approx((0 * 1 + 2 * 3) / 4)}
    assert "which counts in no mean" in caplog.text


def test_what_the_server_finds_out_is_not_for_clients_to_say():
    def evaluate(message, context):
        metrics = {"coverage": 9.0, "local-accuracy": 0.5, "output/1e-300": 1.0}
        return reply(message, num_examples=1, metrics=metrics)

    with LocalGrid(make_app(evaluate=evaluate), 2) as grid:
        strategy = HeteroFL(build, "a1")
        strategy.start(grid, num_rounds=1)
    assert strategy.log.evaluate == {"coverage": 1.0, "local-accuracy": 0.5, "worst-accuracy": 0.5}
    assert strategy.log.evaluate_by_level == {}


def test_a_client_is_not_drawn_after_so_many_refusals_in_a_row():
    strategy, _, records = play(HOSTILE["large"][0], num_rounds=4, limits=Limits(refusals=2))
    assert [sorted(record.rates) for record in records] == [[0, 1, 2], [0, 1, 2], [0, 2], [0, 2]]
    assert strategy.tally.suspended(2) == {1}
    again = Tally(records)
    assert (again.refused, again.in_a_row) == (strategy.tally.refused, strategy.tally.in_a_row)


def test_a_good_reply_ends_the_row_and_failing_is_no_refusal():
    def sometimes(message, context):
        number = message.content["config"]["server-round"]
        if number == 3:
            crash(message, context)
        return add_one(message, context) if number == 2 else HOSTILE["large"][0](message, context)

    strategy, _, records = play(sometimes, num_rounds=4, limits=Limits(refusals=3))
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

    _, _, records = play(add_one, num_rounds=2, grid=Replaying)
    assert [record.failures for record in records] == [{}, {1: "no reply in time"}]


@pytest.mark.parametrize(
    "fault", [{"num_examples": -1}, {"partition": -1}, {"num_partitions": 0}, {"capacity": math.nan}]
)
def test_a_capability_that_means_nothing_is_refused(fault):
    with pytest.raises(ConfigError):
        Capability(**fault)


@pytest.mark.parametrize(
    "layer",
    [
        LayerMoments(0, torch.ones(2), torch.ones(2)),
        LayerMoments(2, torch.ones(2), -torch.ones(2)),
        LayerMoments(2, torch.full((2,), 1e100, dtype=torch.float64), torch.full((2,), 1e300, dtype=torch.float64)),
        LayerMoments(2, torch.full((2,), 1e300, dtype=torch.float64), torch.ones(2)),
        LayerMoments(2, torch.zeros(2), torch.full((2,), 1e39, dtype=torch.float64)),
    ],
    ids=["sums of nothing", "negative variance", "huge", "huge mean", "infinite variance in float32"],
)
@pytest.mark.parametrize("kind", ["paper", "fixed"])
def test_moments_of_no_data_are_refused(kind, layer):
    with pytest.raises(HeteroFLError, match="moments of norm are those of no data"):
        check_possible(Moments(kind, {"norm": layer}), 10)


@pytest.mark.parametrize(("kind", "most"), [("paper", 10), ("fixed", 10 * 2**23)])
def test_counts_that_no_such_number_of_examples_has_are_refused(kind, most):
    good, bad = (
        Moments(kind, {"norm": LayerMoments(count, torch.zeros(2), torch.ones(2))}) for count in (most, most + 1)
    )
    check_possible(good, 10)
    with pytest.raises(HeteroFLError, match=rf"norm count {most + 1:,} .*expected up to {most:,}.* 10 examples"):
        check_possible(bad, 10)


def test_pooled_moments_with_a_variance_below_zero_or_of_a_single_value_are_refused():
    for layer in (LayerMoments(4, torch.full((1,), 4.0), torch.full((1,), 3.9)), LayerMoments(1, *torch.ones(2, 1))):
        with pytest.raises(HeteroFLError, match="those of no data"):
            check_possible(Moments("fixed", {"norm": layer}), 10)


@pytest.mark.parametrize("kind", ["paper", "fixed"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_measured_moments_are_possible(kind, offset):
    data = [inputs(partition) * 0 + offset for partition in range(2)]  # without any variance
    check_possible(collect_moments(build_normed(1.0), data, kind), 20)


def test_numbers_are_read_within_their_limits():
    assert read_number(3, 3, "x") == 3
    assert read_numbers([("a", 1), ("b", 2.5), ("c", True), ("d", "text"), ("e", [1.0])], "x") == {"a": 1.0, "b": 2.5}
    for value in (4, -1, True, 1.0, "3", None):
        with pytest.raises(ReplyError, match="as num-examples"):
            read_number(value, 3, "x")


def test_a_fault_is_kept_short_and_plain():
    assert short("a\x1b[31mb\nc") == "a�[31mb\nc"
    assert len(short("x" * 10**6)) < 1010
    assert short("start" + "x" * 10**6 + "end").endswith("end")


@pytest.mark.parametrize("values", [{"norm_bound": -1}, {"norm_bound": math.nan}, {"examples": 0}, {"refusals": -1}])
def test_limits_that_mean_nothing_are_refused(values):
    with pytest.raises(ConfigError, match="limits: "):
        Limits(**values)


def test_a_record_that_is_larger_than_its_entries_is_refused_unread():
    record = ArrayRecord({"a": Array(np.zeros(10**4))})
    messages.check_sizes(record, {"a": 10**4}, "x")
    with pytest.raises(ReplyError, match="80,128 bytes as 'a', expected up to 8,024"):
        messages.check_sizes(record, {"a": 875}, "x")


def test_replies_to_another_message_are_dropped_by_id(caplog):
    with LocalGrid(make_app(), 1):
        asked, other = (Message(RecordDict(), 7, "train") for _ in range(2))
        asked.metadata.__dict__["_message_id"], other.metadata.__dict__["_message_id"] = "now", "before"
        late, good = (Message(RecordDict(), reply_to=message) for message in (other, asked))
    assert list(in_order([asked], [late, good])) == [(7, good)]
    assert "was not asked this" in caplog.text
