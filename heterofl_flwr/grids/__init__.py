"""Two grids behind Flower's ``Grid`` interface: one that needs no Ray, and one that bounds memory.

``LocalGrid`` runs a ClientApp in this machine's processes; ``Windowed`` lets any grid keep only so many messages out.
Both are loaded when first used: a worker process needs neither, nor the torch that comes with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.grids.local import LocalGrid
    from heterofl_flwr.grids.windowed import Windowed

__all__ = ["LocalGrid", "Windowed"]

_HOMES = {"LocalGrid": "heterofl_flwr.grids.local", "Windowed": "heterofl_flwr.grids.windowed"}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
