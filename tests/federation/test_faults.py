"""Replies that cannot be used: each is refused whole, with its cause, and the round goes on with the others."""

import re

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import Evaluation, HeteroFL, HeteroFLError, LocalGrid, Windowed
from heterofl_flwr.client import reply, submodel
from heterofl_flwr.errors import RoundError
from tests.federation.tiny import Keep, add_one, bare_reply, build, check_gain, config, equal, make_app

NEVER = Evaluation(every=0)
GOOD = MetricRecord({"num-examples": 3})


def start(app, nodes=3, mix="a1", **options):
    with LocalGrid(app, nodes) as grid:
        strategy = HeteroFL(build, mix, evaluation=options.pop("evaluation", NEVER), **options)
        state = strategy.start(grid, num_rounds=1).arrays.to_torch_state_dict()
        return strategy, state


def crash(message, context):
    raise RuntimeError("the disk is full")


def trained(message, change=None, **said):
    """Return a reply whose model is as it came, but for what ``change`` does to its state."""
    state = submodel(message, build).state_dict()
    record = ArrayRecord((change or (lambda state: state))(dict(state)))
    return bare_reply(message, arrays=record, config=config(**said), metrics=GOOD)


def with_entry(name, value):
    return lambda message, context: trained(message, lambda state: {**state, name: value})


def raw(name, array):
    def train(message, context):
        answer = trained(message)
        answer.content["arrays"][name] = array
        return answer

    return train


def npy(shape, data=b""):
    """Return bytes that claim to be an array."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def metrics_of(**values):
    def train(message, context):
        return (
            reply(message, submodel(message, build), num_examples=1) if not values else _with_metrics(message, values)
        )

    return train


def _with_metrics(message, values):
    answer = trained(message)
    answer.content["metrics"] = MetricRecord({key.replace("_", "-"): value for key, value in values.items()})
    return answer


def without(record):
    def train(message, context):
        answer = trained(message)
        del answer.content[record]
        return answer

    return train


def says(**values):
    return lambda message, context: trained(message, **values)


FAULTS = {
    "raises": (crash, "error 2: .*the disk is full"),
    "gives up": (lambda message, context: None, "error 2: .*returned a NoneType"),
    "wrong shape": (
        with_entry("hidden.weight", torch.ones(8, 1)),
        r"hidden.weight has shape \(8, 1\), expected \(8, 3",
    ),
    "broadcastable": (with_entry("hidden.bias", torch.ones(1)), r"hidden.bias has shape \(1,\), expected \(8,\)"),
    "NaN": (with_entry("hidden.bias", torch.full((8,), torch.nan)), "hidden.bias contains NaN or infinity"),
    "infinite": (with_entry("hidden.bias", torch.full((8,), torch.inf)), "hidden.bias contains NaN or infinity"),
    "double": (
        with_entry("hidden.bias", torch.ones(8).double()),
        "hidden.bias is torch.float64, expected torch.float32",
    ),
    "unknown name": (with_entry("extra", torch.ones(8)), "1 names are not in its plan .*'extra'"),
    "lacks one": (
        lambda message, context: trained(message, lambda state: {"hidden.bias": state["hidden.bias"]}),
        "3 parameters of its plan are missing",
    ),
    "text": (raw("hidden.bias", Array(np.array(["a"] * 8))), "arrays that cannot be read: TypeError"),
    "pickled": (
        raw("hidden.bias", Array("object", (8,), "numpy.ndarray", b"\x80\x04.")),
        "cannot be read: .*magic string",
    ),
    "truncated": (raw("hidden.bias", Array("float32", (8,), "numpy.ndarray", npy("(8,)", b"12"))), "cannot be read"),
    "huge": (raw("hidden.bias", Array("float32", (8,), "numpy.ndarray", npy("(99999999999999,)"))), "cannot be read"),
    "a zip": (raw("hidden.bias", Array("float32", (8,), "numpy.ndarray", b"PK\x03\x04junk")), "cannot be read"),
    "no arrays": (without("arrays"), r"sent records \[\], expected arrays alone"),
    "no metrics": (without("metrics"), "sent no metrics record"),
    "no config": (without("config"), "its ClientApp is not converted"),
    "other schema": (says(heterofl_schema=2), "schema 2, expected 1: install the same version"),
    "no number": (metrics_of(loss=1.0), "None as num-examples, expected a whole number from 0 up"),
    "half a number": (metrics_of(num_examples=1.5), "1.5 as num-examples"),
    "negative number": (metrics_of(num_examples=-1), "-1 as num-examples"),
    "number list": (metrics_of(num_examples=[1, 2]), r"\[1, 2\] as num-examples"),
    "label too large": (says(labels=[0, 4]), r"labels \[4\] are out of range: expected whole numbers from 0 to 3"),
    "label negative": (says(labels=[-1]), r"labels \[-1\] are out of range"),
    "label fraction": (says(labels=[0.5]), "labels of type torch.float32"),
    "label text": (says(labels=["cat"]), "labels cannot be read"),
    "labels no list": (says(labels="0,1"), "'0,1' as labels, expected a list"),
    "capacity text": (says(capacity="b"), "'b' as capacity, expected float"),
    "capacity zero": (says(capacity=0.0), "the capacity it reports is not usable: a rate of 0.0"),
    "capacity NaN": (says(capacity=float("nan")), "the capacity it reports is not usable"),
}


@pytest.mark.parametrize(("train", "cause"), FAULTS.values(), ids=FAULTS)
def test_a_reply_that_cannot_be_used_is_refused_whole_and_named(train, cause):
    strategy, state = start(make_app(odd={1: train}))
    assert list(strategy.log.failures) == [1]
    assert re.search(cause, strategy.log.failures[1])
    # Nodes 0 and 2 add 1 and 3; the mean is 2, as if node 1 were not there.
    check_gain(strategy, state, 2)


@pytest.mark.parametrize(("train", "cause"), FAULTS.values(), ids=FAULTS)
def test_a_round_where_all_fail_ends_the_run_and_names_the_causes(train, cause):
    with pytest.raises(
        RoundError, match=rf"(?s)round 1: 0 of 2 clients .* partition 0: .*{cause}.*partition 1: "
    ) as info:
        start(make_app(train), 2)
    assert isinstance(info.value, AggregationError)  # Flower's own error, and ours
    assert isinstance(info.value, HeteroFLError)


def test_a_client_that_counts_no_examples_still_counts_as_one_client():
    strategy, state = start(make_app(odd={1: metrics_of(num_examples=0)}), 2)
    assert strategy.log.failures == {}
    torch.testing.assert_close(state["hidden.bias"], strategy.federation.initial_state()["hidden.bias"] + 0.5)
    assert strategy.log.train["loss"] == 0.0


def test_metrics_that_are_no_numbers_are_left_out():
    train = metrics_of(num_examples=2, loss=0.5, curve=[1.0, 0.5])
    strategy, _ = start(make_app(train), 2)
    assert strategy.log.train == {"loss": 0.5}


def test_metrics_that_are_not_finite_are_shown():
    strategy, _ = start(make_app(metrics_of(num_examples=2, loss=float("nan"))), 2)
    assert np.isnan(strategy.log.train["loss"])


def test_a_floor_above_the_number_of_clients_says_so():
    with pytest.raises(RoundError, match=r"3 of 3 clients gave a usable reply, expected at least 4: .* which is 4\)$"):
        start(make_app(), min_replies=4)


def test_labels_where_no_rows_belong_to_classes_are_refused():
    with pytest.raises(RoundError, match="names labels, but the aggregator has no label_rows"):
        start(make_app(says(labels=[0])), label_rows=())


def test_label_rows_that_do_not_exist_are_refused_by_name():
    with pytest.raises(HeteroFLError, match=r"label_rows names head\.weight"):
        start(make_app(), label_rows=["head.weight"])


def test_a_failing_client_takes_part_again_in_the_next_round():
    def sometimes(message, context):
        if message.content["config"]["server-round"] == 1:
            crash(message, context)
        return add_one(message, context)

    keep = Keep()
    with LocalGrid(make_app(odd={1: sometimes}), 3) as grid:
        HeteroFL(build, "a1", evaluation=NEVER, callbacks=[keep]).start(grid, num_rounds=2)
    assert [sorted(record.failures) for record in keep.records] == [[1], []]


def test_faults_and_a_window_go_together():
    states = []
    for wrap in (lambda grid: grid, lambda grid: Windowed(grid, 2)):
        odd = {1: crash, 3: with_entry("hidden.bias", torch.ones(1))}
        with LocalGrid(make_app(odd=odd), 6) as grid:
            strategy = HeteroFL(build, "a1-c1", evaluation=NEVER)
            states.append(strategy.start(wrap(grid), num_rounds=2).arrays.to_torch_state_dict())
        assert sorted(strategy.log.failures) == [1, 3]
    assert equal(*states)


def test_a_client_that_is_late_is_left_out():
    class Lossy(LocalGrid):
        """The last reply to an instruction to train never comes."""

        def send_and_receive(self, messages, *, timeout=None):
            messages = list(messages)
            replies = list(super().send_and_receive(messages, timeout=timeout))
            return replies[:-1] if messages[0].metadata.message_type == "train" else replies

    with Lossy(make_app(), 3) as grid:
        strategy = HeteroFL(build, "a1", evaluation=NEVER)
        strategy.start(grid, num_rounds=1)
    assert strategy.log.failures == {2: "no reply in time"}


def test_a_client_without_our_functions_is_told_apart():
    def stranger(message, context):
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": GOOD}), reply_to=message)

    with pytest.raises(RoundError, match="its ClientApp is not converted: let it call answer_queries once, submodel"):
        start(make_app(stranger))


def test_a_client_that_loads_the_whole_model_itself_is_told_apart():
    def stranger(message, context):
        build(1.0).load_state_dict(message.content["arrays"].to_torch_state_dict())

    with pytest.raises(RoundError, match=r"size mismatch for .*its ClientApp is not converted"):
        start(make_app(stranger), mix="c1")


def test_a_config_of_the_servers_that_a_client_cannot_read_is_named_on_its_side():
    def train(message, context):
        message.content["config"] = ConfigRecord({"heterofl-schema": 1, "rate": "large"})
        return add_one(message, context)

    with pytest.raises(RoundError, match="the server sent 'large' as rate, expected float"):
        start(make_app(train))


def test_replies_to_what_was_not_configured_are_refused():
    with LocalGrid(make_app(), 1) as grid:
        strategy = HeteroFL(build, min_available_nodes=1)
        with pytest.raises(RoundError, match="round 1 was not configured"):
            strategy.aggregate_train(1, [])
        sent = strategy.configure_train(1, ArrayRecord(strategy.federation.initial_state()), config(), grid)
        strategy.aggregate_train(1, grid.send_and_receive(sent))
        with pytest.raises(RoundError, match="round 1 was not configured"):
            strategy.aggregate_train(1, [])
