"""What torch's operators say about the axes of their outputs; importing this package registers the rules."""

from heterofl_flwr.slicing.operators import entrywise, lookups, movement, norms, products, summaries, views
from heterofl_flwr.slicing.operators.registry import Call, find_operator, operator

__all__ = [
    "Call",
    "entrywise",
    "find_operator",
    "lookups",
    "movement",
    "norms",
    "operator",
    "products",
    "summaries",
    "views",
]
