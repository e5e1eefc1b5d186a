"""Classes with the interface of Flower's ``Grid``.

``LocalGrid`` runs clients in this process, and ``RayGrid`` runs them in Ray actors. ``Windowed`` is a proxy for any
grid; it limits the number of unanswered messages.
"""

from heterofl_flwr.grids.local import LocalGrid
from heterofl_flwr.grids.ray_grid import RayGrid
from heterofl_flwr.grids.windowed import Windowed

__all__ = ["LocalGrid", "RayGrid", "Windowed"]
