"""Wide twins: a model's own forward pass over layers that compute several clients at once."""

from heterofl_flwr.learn.wide import layers
from heterofl_flwr.learn.wide.registry import Rule, joined, stacked, widens
from heterofl_flwr.learn.wide.twin import wide_twin

__all__ = ["Rule", "joined", "layers", "stacked", "wide_twin", "widens"]
