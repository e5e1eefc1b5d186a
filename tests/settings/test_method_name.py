"""The names of methods in titles, tables and comparisons."""

from typing import get_args

import pytest

from heterofl_flwr.core.slice_rules import SliceRule
from heterofl_flwr.nn.inner_widths import InnerWidths
from heterofl_flwr.settings.method_name import EXITS, INNER_LEVELS, SLICES
from heterofl_flwr.training.exit_losses import TrainedExits


@pytest.mark.parametrize(
    ("names", "values"),
    [(SLICES, SliceRule), (INNER_LEVELS, InnerWidths), (EXITS, TrainedExits)],
    ids=["slice-rule", "distill", "exits"],
)
def test_each_value_of_a_setting_that_chooses_a_method_has_a_name(names, values):
    assert {*names, "none"} == {*get_args(values), "none"}
