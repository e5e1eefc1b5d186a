"""A trained model as files that run without this package: safetensors, ``torch.export`` and ONNX, each compared once.

What an optional format needs is loaded when it is written.
"""

from heterofl_flwr.export.export import export_model
from heterofl_flwr.export.formats import FORMATS, load_state

__all__ = ["FORMATS", "export_model", "load_state"]
