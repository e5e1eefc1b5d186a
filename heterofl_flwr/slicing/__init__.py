"""Any model at any width: what belongs together is found by a trace of the model's own code. Imports no flwr."""

from heterofl_flwr.slicing.build import Elastic, elastic
from heterofl_flwr.slicing.layers import adjust
from heterofl_flwr.slicing.stand_ins import stand_in

__all__ = ["Elastic", "adjust", "elastic", "stand_in"]
