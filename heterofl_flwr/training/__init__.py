"""A client's work in plain PyTorch: training and evaluation."""

from heterofl_flwr.training.batches import input_batches
from heterofl_flwr.training.device import give_back_freed_memory, keep_freed_memory, resolve_device
from heterofl_flwr.training.engines.choose import ENGINES, train, train_together
from heterofl_flwr.training.engines.plain import DivergedError
from heterofl_flwr.training.evaluate import evaluate
from heterofl_flwr.training.options import EvaluateResult, TrainingJob, TrainOptions, TrainResult

__all__ = [
    "ENGINES",
    "DivergedError",
    "EvaluateResult",
    "TrainOptions",
    "TrainResult",
    "TrainingJob",
    "evaluate",
    "give_back_freed_memory",
    "input_batches",
    "keep_freed_memory",
    "resolve_device",
    "train",
    "train_together",
]
