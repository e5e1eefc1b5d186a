"""What torch's operators say about the axes of their outputs; importing this package registers the rules."""

from heterofl_flwr.elastic_models.operators import entrywise, layers, movement, views
from heterofl_flwr.elastic_models.operators.registry import Call, find_operator, operator

__all__ = ["Call", "entrywise", "find_operator", "layers", "movement", "operator", "views"]
