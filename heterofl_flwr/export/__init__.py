"""Export of a trained model to files that run without this package.

The outputs of every file are compared with those of the model.
"""

from heterofl_flwr.export.export import export_model
from heterofl_flwr.export.formats import FORMATS, load_state

__all__ = ["FORMATS", "export_model", "load_state"]
