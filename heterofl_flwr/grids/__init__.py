"""Classes with Flower's ``Grid`` interface: two that run clients, and one that bounds memory.

``LocalGrid`` runs a ClientApp in this process, and ``RayGrid`` in Ray actors. ``Windowed`` is a proxy that limits the
number of unanswered messages of any grid.
"""

from heterofl_flwr.grids.local import LocalGrid
from heterofl_flwr.grids.ray_grid import RayGrid
from heterofl_flwr.grids.windowed import Windowed

__all__ = ["LocalGrid", "RayGrid", "Windowed"]
