"""Any model at any width: what belongs together is found by a trace of the model's own code. Imports no flwr."""

from heterofl_flwr.elastic_models import function_rules, movement_rules  # noqa: F401  # they register their rules
from heterofl_flwr.elastic_models.cut_layers import SCALED
from heterofl_flwr.elastic_models.elastic_model import Elastic, elastic
from heterofl_flwr.elastic_models.rules import adjust, stand_in

__all__ = ["SCALED", "Elastic", "adjust", "elastic", "stand_in"]
