"""HeteroFL on torch tensors, without Flower: levels, widths, slicing plans and aggregators."""

from heterofl_flwr.core.aggregation import Aggregation
from heterofl_flwr.core.aggregator import Aggregator, CheckedReply
from heterofl_flwr.core.axes import Axes, Axis, axes_between
from heterofl_flwr.core.counting_mean import CountingMean
from heterofl_flwr.core.exchanged import exchange_frozen
from heterofl_flwr.core.fidelity import Fidelity
from heterofl_flwr.core.layer_rules import register
from heterofl_flwr.core.levels import LEVELS, width
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.core.robust import Robust, RobustMean
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.core.slice_rules import prefix

__all__ = [
    "LEVELS",
    "Aggregation",
    "Aggregator",
    "Axes",
    "Axis",
    "CheckedReply",
    "CountingMean",
    "Fidelity",
    "Mix",
    "Plan",
    "Robust",
    "RobustMean",
    "axes_between",
    "exchange_frozen",
    "prefix",
    "register",
    "width",
]
