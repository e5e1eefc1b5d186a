"""Rows: what blocks span, and what the command line makes of it."""

from types import MappingProxyType

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

from heterofl_flwr.errors import ConfigError

SINGLE = {"mix": "a,e", "norm": "none,sbn"}
MIXED = {"mix": "a-e", "norm": "none", "scaler": False}


def rows(blocks, *given, params=MappingProxyType({})):
    kind = Plugins.instance().class_name_to_class["hydra_plugins.heterofl_sweeper.BlockSweeper"]
    sweeper = kind(params, {str(number): block for number, block in enumerate(blocks)})
    return [" ".join(row) for row in sweeper.rows(OverridesParser.create(), given)]


@pytest.mark.parametrize(
    ("blocks", "given", "expected"),
    [
        ([SINGLE, MIXED], [], ["a none", "a sbn", "e none", "e sbn", "a-e none False"]),
        ([{"part": SINGLE}, {"mix": "e", "deep": MIXED}], ["norm=none"], ["a none", "e none", "a-e none False"]),
        ([SINGLE, MIXED], ["norm=none", "mix=a,a-e"], ["a none", "a-e none False"]),
        ([SINGLE, MIXED], ["scaler=false"], ["a-e none False"]),
        ([SINGLE, {"mix": "e", "norm": "in"}], ["norm=gn"], ["a gn", "e gn"]),
        ([MIXED], ["seed=0,1"], ["a-e none False 0", "a-e none False 1"]),
        ([], ["mix=a,e", "seed=range(0,2)"], ["a 0", "a 1", "e 0", "e 1"]),
        ([], [], [""]),
    ],
)
def test_rows_are_all_combinations_within_each_block(blocks, given, expected):
    found = [" ".join(text.partition("=")[2] for text in row.split()) for row in rows(blocks, *given)]
    assert found == expected


def test_params_replace_values_of_blocks_and_pick_none():
    found = rows([SINGLE, MIXED], "mix=e", params={"norm": "sbn", "seed": 7})
    assert found == ["mix=e norm=sbn seed=7"]


@pytest.mark.parametrize(
    ("blocks", "given", "error", "text"),
    [
        ([SINGLE], ["mix=e,b"], ConfigError, "mix=e is in the experiment and mix=b is not"),
        ([SINGLE, MIXED], ["mix=a", "scaler=false"], ConfigError, "no row of the experiment has mix=a and sca"),
        ([], ["lr=interval(0,1)"], ConfigError, "search over an interval needs hparams_search=optuna"),
        (
            [],
            ["experiment=table1,table2"],
            ConfigError,
            r"expected a list, such as experiment=\[",
        ),
    ],
)
def test_what_gives_no_rows_raises(blocks, given, error, text):
    with pytest.raises(error, match=text):
        rows(blocks, *given)
