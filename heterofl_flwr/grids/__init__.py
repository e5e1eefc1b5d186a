"""Grids behind Flower's ``Grid`` interface: two that run clients, and one that bounds memory.

``LocalGrid`` runs a ClientApp in this process, ``RayGrid`` in Ray actors; ``Windowed`` limits how many
messages of any grid are under way.
"""

from heterofl_flwr.grids.local import LocalGrid
from heterofl_flwr.grids.ray_grid import RayGrid
from heterofl_flwr.grids.windowed import Windowed

__all__ = ["LocalGrid", "RayGrid", "Windowed"]
