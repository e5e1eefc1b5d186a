"""What code says about axes by the lengths that it hands to torch's functions; importing this registers the rules."""

from heterofl_flwr.slicing.functions import layers, parts, shapes, sizes
from heterofl_flwr.slicing.functions.registry import find_function, function

__all__ = ["find_function", "function", "layers", "parts", "shapes", "sizes"]
