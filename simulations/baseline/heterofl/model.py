"""heterofl: A Flower Baseline."""

from heterofl_flwr.core import Mix
from heterofl_flwr.nn import build_model


def model_builder(mix: str):
    """Return the function from a rate to the paper's CNN at that rate."""
    global_rate = Mix.parse(mix).global_rate  # the Scaler divides by rate / global rate
    return build_model("cnn", channels=1, classes=10, global_rate=global_rate)
