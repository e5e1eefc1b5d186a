"""Which messages are answered together."""

from collections import defaultdict

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.grids.queued import Group, together

pytestmark = pytest.mark.usefixtures("identity")


def message(node_id, rate, kind="train"):
    return Message(RecordDict({"config": ConfigRecord({} if rate is None else {"rate": rate})}), node_id, kind)


def shown(groups):
    return [[one.metadata.dst_node_id for one in group] for group in groups]


def test_a_rate_is_shared_out_evenly_in_the_order_sent():
    messages = [message(node_id, 1.0 if node_id % 2 else 0.5) for node_id in range(2, 15)]
    assert shown(together(messages, lambda one: 5)) == [[2, 4, 6], [8, 10, 12, 14], [3, 5, 7], [9, 11, 13]]


def test_what_has_no_rate_or_is_no_training_stays_alone():
    others = [message(2, None), message(3, None), message(4, 1.0, "evaluate"), message(5, 1.0, "train.other")]
    others += [message(6, "1.0"), Message(RecordDict(), 7, "train")]
    groups = shown(together([*others, message(8, 1.0), message(9, 1.0)], lambda one: 9))
    assert groups == [[2], [3], [4], [5], [6], [7], [8, 9]]


def test_how_many_may_be_together_can_depend_on_the_message():
    messages = [message(node_id, rate) for node_id, rate in enumerate([1.0] * 4 + [0.5] * 4, 2)]
    of_rate = {1.0: 1, 0.5: 3}
    groups = together(messages, lambda one: of_rate[one.content["config"]["rate"]])
    assert shown(groups) == [[2], [3], [4], [5], [6, 7], [8, 9]]
    assert len(together(messages[:4], lambda one: 1 if one is messages[2] else 4)) == 4  # the smallest counts


@given(st.lists(st.tuples(st.integers(2, 9), st.sampled_from([1.0, 0.5, None])), max_size=40), st.integers(1, 6))
def test_groups_are_whole_even_alike_and_in_order(sent, most):
    messages = [message(*one) for one in sent]
    groups = together(messages, lambda one: most)
    assert sorted(map(id, messages)) == sorted(id(one) for group in groups for one in group)
    lines = defaultdict(list)
    for group in groups:
        assert 1 <= len(group) <= most
        assert len({one.metadata.dst_node_id for one in group}) == len(group)
        assert len({one.content["config"].get("rate") for one in group}) == 1
        for one in group:
            lines[one.metadata.dst_node_id].append(one)
    for node_id, line in lines.items():
        assert line == [one for one in messages if one.metadata.dst_node_id == node_id]


def test_groups_sort_by_push_then_by_urgency_then_as_sent():
    groups = [Group(2, -9.0, 1, []), Group(1, -1.0, 2, []), Group(1, -5.0, 4, []), Group(1, -5.0, 3, [])]
    assert [group.number for group in sorted(groups)] == [3, 4, 2, 1]
