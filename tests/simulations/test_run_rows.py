"""Rows: what a block spans, and what the command line makes of it."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from heterofl_flwr.errors import ConfigError
from simulations.sweep.plan import axes_of, block_of, rows_of

PARSER = OverridesParser.create()
SINGLE = {"mix": "a,e", "norm": "none,sbn"}
MIXED = {"mix": "a-e", "norm": "none", "scaler": False}


def rows(blocks, *given):
    return [" ".join(row) for row in rows_of([block_of(own, PARSER) for own in blocks], axes_of(given, PARSER))]


def test_a_block_is_all_combinations_and_blocks_follow_each_other():
    assert rows([SINGLE, MIXED]) == [
        "mix=a norm=none",
        "mix=a norm=sbn",
        "mix=e norm=none",
        "mix=e norm=sbn",
        "mix=a-e norm=none scaler=False",
    ]


def test_without_an_experiment_the_command_line_is_the_sweep():
    assert rows([], "mix=a,e", "seed=range(0,2)") == ["mix=a seed=0", "mix=a seed=1", "mix=e seed=0", "mix=e seed=1"]
    assert rows([]) == [""]


def test_a_new_key_is_added_to_every_row():
    assert rows([MIXED], "seed=0,1") == [f"mix=a-e norm=none scaler=False seed={seed}" for seed in (0, 1)]


def test_a_value_of_the_experiment_picks_its_rows():
    assert rows([SINGLE, MIXED], "mix=e") == ["mix=e norm=none", "mix=e norm=sbn"]
    assert rows([SINGLE, MIXED], "norm=none", "mix=a,a-e") == ["mix=a norm=none", "mix=a-e norm=none scaler=False"]
    assert rows([SINGLE, MIXED], "scaler=false") == ["mix=a-e norm=none scaler=False"]


def test_another_value_takes_the_place_of_the_experiments_own_and_rows_that_become_equal_are_one():
    assert rows([SINGLE], "norm=gn") == ["mix=a norm=gn", "mix=e norm=gn"]
    assert rows([SINGLE, {"mix": "e", "norm": "in"}], "norm=gn") == ["mix=a norm=gn", "mix=e norm=gn"]


def test_values_of_both_kinds_are_refused():
    with pytest.raises(ConfigError, match="mix=e is in the experiment and mix=b is not"):
        rows([SINGLE], "mix=e,b")


def test_a_choice_without_rows_is_told():
    with pytest.raises(ConfigError, match="no row of the experiment has mix=a and scaler=False; dry=true lists"):
        rows([SINGLE, MIXED], "mix=a", "scaler=false")


def test_of_two_values_for_a_key_the_later_counts():
    assert rows([], "seed=1", "seed=2") == ["seed=2"]


def test_quoted_commas_are_no_sweep():
    assert rows([], "train.milestones='1,2'") == ["train.milestones='1,2'"]


def test_a_key_can_be_added_or_taken_away():
    assert rows([], "+a=1", "~b", "~c=2") == ["+a=1 ~b ~c=2"]


def test_an_interval_has_no_values_to_go_through():
    with pytest.raises(ConfigError, match=r"lr=interval\(0,1\): a sweep needs values one by one, such as lr=0.1,0.2"):
        rows([], "lr=interval(0,1)")
