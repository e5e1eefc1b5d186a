"""Slice rules: which entries of an axis a client keeps in a round."""

from typing import get_args

import pytest

from heterofl_flwr.core.slice_rules import CLIENT_RULES, NESTED_RULES, SliceRule, make_slice_function, window_number

VARIES = {
    "prefix": set(),
    "important": set(),
    "rolling": {"server_round"},
    "random-level": {"seed", "server_round", "rate"},
    "random-client": {"seed", "server_round", "partition"},
}
"""Arguments on which the slice of each rule depends."""


def kept(rule, full, number, **told):
    told = {"seed": 0, "server_round": 1, "rate": 0.5, "partition": 0, **told}
    positions = make_slice_function(rule, **told)(full, number)
    return list(range(number)) if positions is None else list(positions)


def test_a_window_moves_on_by_one_and_goes_round():
    windows = [kept("rolling", 4, 2, server_round=number) for number in range(1, 6)]
    assert windows == [[0, 1], [1, 2], [2, 3], [0, 3], [0, 1]]
    assert kept("prefix", 4, 2, server_round=3) == [0, 1]


def test_a_window_may_move_on_by_more():
    windows = [kept("rolling", 8, 2, server_round=window_number(number, 3)) for number in range(1, 5)]
    assert windows == [[0, 1], [3, 4], [6, 7], [1, 2]]


@pytest.mark.parametrize("rule", get_args(SliceRule))
def test_what_a_slice_depends_on(rule):
    other = {"seed": 1, "server_round": 2, "rate": 0.25, "partition": 1}
    changed = {name for name, value in other.items() if kept(rule, 64, 16) != kept(rule, 64, 16, **{name: value})}
    assert changed == VARIES[rule]
    assert (rule in NESTED_RULES) == (not changed)
    assert (rule in CLIENT_RULES) == ("partition" in changed)
