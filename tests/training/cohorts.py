"""What tests of cohorts share: clients, models in float64, and the comparison with plain."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from heterofl_flwr.data import Split
from heterofl_flwr.nn import CNN
from heterofl_flwr.training import TrainingJob, TrainOptions
from heterofl_flwr.training.engines.plain import train_plain

OPTIONS = TrainOptions(learning_rate=0.05, epochs=2, batch_size=5)
SIZES = (23, 15, 11, 10)  # last batches of 3, none, 6 and none


def images(number: int, seed: int, channels: int = 3) -> Split:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, channels, 8, 8, generator=generator)
    return Split(inputs, torch.randint(4, (number,), generator=generator), torch.arange(channels) / 7.0)


def jobs(build: Callable[[], nn.Module], sizes=SIZES, classes=None, split=images) -> list[TrainingJob]:
    """Return clients with different parameters, examples and seeds; the same at each call."""
    made = []
    for client, number in enumerate(sizes):
        torch.manual_seed(client)
        own = None if classes is None else classes[client]
        made.append(TrainingJob(model=build(), split=split(number, client), seed=100 + client, classes=own))
    return made


class Double(nn.Module):
    """A model in float64; splits hold float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x.double() if x.is_floating_point() else x)


def exact(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that makes the model in float64.

    There equality can be asked for. In float32 rounding may move an activation across zero, on one kind of processor
    if not on another, and then everything differs a little.
    """
    return lambda: Double(build())


def small(**options: object) -> Callable[[], nn.Module]:
    return lambda: CNN(3, 5, hidden=(8, 16), **options)


def state(job: TrainingJob) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in job.model.state_dict().items()}


def assert_as_plain(
    ours: list[TrainingJob], results, options: TrainOptions, twins: list[TrainingJob], tolerance: float = 1e-10
) -> None:
    """Compare with plain; ``tolerance`` is relative, and for single values absolute too."""
    expected = train_plain(twins, options)
    for one, other in zip(ours, twins, strict=True):
        for name, value in other.model.state_dict().items():
            torch.testing.assert_close(one.model.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    for result, other in zip(results, expected, strict=True):
        assert (result.examples, result.steps, result.accuracy) == (other.examples, other.steps, other.accuracy)
        assert result.loss == pytest.approx(other.loss, rel=max(tolerance, 1e-6))  # losses are in float32
