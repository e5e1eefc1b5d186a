"""Rows: what blocks span, and what the command line makes of it."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException

from heterofl_flwr.errors import ConfigError

SINGLE = {"mix": "a,e", "norm": "none,sbn"}
MIXED = {"mix": "a-e", "norm": "none", "scaler": False}


def rows(blocks, *given):
    kind = Plugins.instance().class_name_to_class["hydra_plugins.heterofl_sweeper.BlockSweeper"]
    sweeper = kind(None, {}, {str(number): block for number, block in enumerate(blocks)})
    return [" ".join(row) for row in sweeper.rows(OverridesParser.create().parse_overrides(list(given)))]


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


@pytest.mark.parametrize(
    ("blocks", "given", "error", "text"),
    [
        ([SINGLE], ["mix=e,b"], ConfigError, "mix=e is in the experiment and mix=b is not"),
        ([SINGLE, MIXED], ["mix=a", "scaler=false"], ConfigError, "no row of the experiment has mix=a and sca"),
        ([], ["lr=interval(0,1)"], HydraException, "does not support sweep type : INTERVAL_SWEEP"),
    ],
)
def test_what_gives_no_rows_raises(blocks, given, error, text):
    with pytest.raises(error, match=text):
        rows(blocks, *given)
