"""Any model at any width, by a trace of the model's code."""

from heterofl_flwr.elastic_models import function_rules, movement_rules  # noqa: F401  # importing registers their rules
from heterofl_flwr.elastic_models.cut_layers import SCALED
from heterofl_flwr.elastic_models.elastic_model import Elastic, elastic
from heterofl_flwr.elastic_models.rules import adjust, stand_in

__all__ = ["SCALED", "Elastic", "adjust", "elastic", "stand_in"]
