"""Classes with the interface of Flower's ``Grid``."""

from heterofl_flwr.grids.local import LocalGrid
from heterofl_flwr.grids.ray_grid import RayGrid
from heterofl_flwr.grids.windowed import Windowed

__all__ = ["LocalGrid", "RayGrid", "Windowed"]
