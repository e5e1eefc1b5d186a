"""Any model at any width: what belongs together is found by a trace of the model's own code. Imports no flwr."""

from heterofl_flwr.elastic_models.build import Elastic, elastic
from heterofl_flwr.elastic_models.interception import stand_in
from heterofl_flwr.elastic_models.layer_rules import adjust

__all__ = ["Elastic", "adjust", "elastic", "stand_in"]
