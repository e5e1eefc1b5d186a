"""Grids behind Flower's ``Grid`` interface: two that run clients, and one that bounds memory.

``LocalGrid`` runs a ClientApp in this machine's processes, ``RayGrid`` in Ray actors; ``Windowed`` lets any grid keep
only so many messages out. They are loaded when first used: a worker process needs none, nor the torch that comes with
them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.grids.local import LocalGrid
    from heterofl_flwr.grids.ray_grid import RayGrid
    from heterofl_flwr.grids.windowed import Windowed

__all__ = ["LocalGrid", "RayGrid", "Windowed"]

_HOMES = {
    "LocalGrid": "heterofl_flwr.grids.local",
    "RayGrid": "heterofl_flwr.grids.ray_grid",
    "Windowed": "heterofl_flwr.grids.windowed",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
