"""A trained model as files that run without this package: safetensors, ``torch.export`` and ONNX, each of them checked.

The names below are loaded when they are first used, and what an optional format needs, when it is written.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from heterofl_flwr.export.export import export_model
    from heterofl_flwr.export.formats import FORMATS, load_state
    from heterofl_flwr.export.table import write_table

__all__ = ["FORMATS", "export_model", "load_state", "write_table"]

_HOMES = {
    "FORMATS": "heterofl_flwr.export.formats",
    "export_model": "heterofl_flwr.export.export",
    "load_state": "heterofl_flwr.export.formats",
    "write_table": "heterofl_flwr.export.table",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
