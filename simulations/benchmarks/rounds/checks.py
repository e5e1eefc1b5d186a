"""Are the numbers that a side reports true? A fast wrong answer is worth nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heterofl_flwr.data import Dataset
from heterofl_flwr.nn import PAPER, Moments, with_static_norm
from heterofl_flwr.nn.moments import LayerMoments
from heterofl_flwr.nn.static_norm import batch_norms
from heterofl_flwr.training import evaluate

Array = NDArray[np.float32]

MOST_OTHERS = 2
"""Test images whose class may hang on the rounding of one side's sums."""

TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Model:
    """A side's global model as it was tested, in the order of its layers, which is that of ours.

    Attributes
    ----------
    parameters
        All parameters.
    means, variances
        The static moments of the batch norm layers.
    """

    parameters: Sequence[Array]
    means: Sequence[Array]
    variances: Sequence[Array]

    @classmethod
    def of(cls, module: nn.Module) -> "Model":
        """Take these out of a module in evaluation."""
        layers = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
        return cls(
            [parameter.detach().numpy() for parameter in module.parameters()],
            [torch.as_tensor(layer.running_mean).numpy() for layer in layers],
            [torch.as_tensor(layer.running_var).numpy() for layer in layers],
        )

    def build(self) -> nn.Module:
        """Return our module with these values."""
        module = PAPER["mnist"].build()(1.0)
        with torch.no_grad():
            for own, value in zip(module.parameters(), self.parameters, strict=True):
                own.copy_(torch.from_numpy(value))
        names = batch_norms(module)
        values = zip(names, self.means, self.variances, strict=True)
        layers = {
            name: LayerMoments(1, torch.from_numpy(mean).double(), torch.from_numpy(variance).double())
            for name, mean, variance in values
        }
        return with_static_norm(module, Moments("paper", layers))


def check(side: str, model: Model, accuracy: float, data: Dataset) -> None:
    """Raise unless the model is as good as the side says, and its first moments are those of all training images."""
    module = model.build()
    found = evaluate(module, data.test)
    difference = abs(found.accuracy - accuracy) * len(data.test)
    if not difference <= MOST_OTHERS + 0.5:
        raise RuntimeError(f"{side} reports an accuracy of {accuracy:.4f}, but its model has {found.accuracy:.4f}")
    convolution = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
    with torch.inference_mode():
        means = [convolution(inputs).mean((0, 2, 3)) * len(inputs) for inputs in data.train.inputs.split(1000)]
    expected = torch.stack(means).sum(0) / len(data.train)
    error = float((torch.from_numpy(model.means[0]) - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise RuntimeError(f"{side}'s static batch norm is {error:.2g} off the mean over all training images")
