"""The folder of a run: settings, history, checkpoints, models, and where they come from."""

from heterofl_flwr.runs.costs import Costs, LevelCost, ModelCosts
from heterofl_flwr.runs.early_stopping import EarlyStopping
from heterofl_flwr.runs.folder import RunFolder
from heterofl_flwr.runs.metrics import seconds_to
from heterofl_flwr.runs.models import load_model, save_models
from heterofl_flwr.runs.recorder import Recorder

__all__ = [
    "Costs",
    "EarlyStopping",
    "LevelCost",
    "ModelCosts",
    "Recorder",
    "RunFolder",
    "load_model",
    "save_models",
    "seconds_to",
]
