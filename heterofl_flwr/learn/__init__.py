"""What a client does: train, measure moments, evaluate. Plain torch; imports no flwr."""

from heterofl_flwr.learn.batches import input_batches
from heterofl_flwr.learn.device import resolve_device
from heterofl_flwr.learn.evaluate import evaluate
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.plain import DivergedError
from heterofl_flwr.learn.results import EvaluateResult, TrainResult
from heterofl_flwr.learn.train import ENGINES, train

__all__ = [
    "ENGINES",
    "DivergedError",
    "EvaluateResult",
    "TrainOptions",
    "TrainResult",
    "evaluate",
    "input_batches",
    "resolve_device",
    "train",
]
