"""Replies of bad faith: refused before they are read or before they count, and counted against their client."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict

from heterofl_flwr import LocalGrid, messages
from heterofl_flwr.errors import HeteroFLError, ReplyError
from heterofl_flwr.federation.limits import read_number, read_numbers, short
from heterofl_flwr.nn.moments import LayerMoments, Moments, check_possible
from heterofl_flwr.nn.static_norm import collect_moments
from heterofl_flwr.strategies.read_replies import in_order
from tests.federation.tiny import build_normed, inputs, make_app


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
