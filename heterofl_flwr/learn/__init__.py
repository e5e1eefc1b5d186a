"""What a client does: train, measure moments, evaluate. Plain torch; imports no flwr."""

from heterofl_flwr.learn.allocator import give_back_freed_memory, keep_freed_memory
from heterofl_flwr.learn.batches import input_batches
from heterofl_flwr.learn.device import resolve_device
from heterofl_flwr.learn.evaluate import evaluate, evaluate_both
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.plain import DivergedError
from heterofl_flwr.learn.results import EvaluateResult, TrainResult
from heterofl_flwr.learn.train import ENGINES, train, train_together
from heterofl_flwr.learn.work import Work

__all__ = [
    "ENGINES",
    "DivergedError",
    "EvaluateResult",
    "TrainOptions",
    "TrainResult",
    "Work",
    "evaluate",
    "evaluate_both",
    "give_back_freed_memory",
    "input_batches",
    "keep_freed_memory",
    "resolve_device",
    "train",
    "train_together",
]
