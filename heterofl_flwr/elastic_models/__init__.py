"""Any model at any width, by a trace of the model's code.

The trace numbers the entries of each tensor's axes. These numbers are *positions* (``Row``, ``Rows``). Operators tie
positions of inputs and outputs. Tied positions form one *channel*. Channels that occur on the same axes form a
*group* (``Places``), such as the channels of a residual stream. A slice keeps the first channels of each group.
"""

from heterofl_flwr.elastic_models import function_rules, movement_rules  # noqa: F401  # importing registers their rules
from heterofl_flwr.elastic_models.cut_layers import SCALED
from heterofl_flwr.elastic_models.elastic_model import Elastic, elastic
from heterofl_flwr.elastic_models.rules import adjust, stand_in

__all__ = ["SCALED", "Elastic", "adjust", "elastic", "stand_in"]
