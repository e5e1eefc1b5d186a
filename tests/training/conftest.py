"""What the tests of training share: small data, small models, and the slow twin of training."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Reading, Split
from heterofl_flwr.nn import CNN
from heterofl_flwr.training import TrainingJob, TrainOptions
from heterofl_flwr.training.engines.plain import train_plain
from heterofl_flwr.training.engines.seats import Hall, Round

OPTIONS = TrainOptions(learning_rate=0.05, epochs=2, batch_size=5)
SIZES = (23, 15, 11, 10)  # last batches of 3, none, 6 and none


def images(number: int, seed: int = 0, channels: int = 3) -> Split:
    """Return random images, classes 0 to 3."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(number, channels, 8, 8, generator=generator)
    return Split(inputs, torch.randint(4, (number,), generator=generator), torch.arange(channels) / 7.0)


def make_text(rows: int, words: int, length: int = 8) -> Split:
    tokens = torch.arange(rows * words).reshape(rows, words) % 7
    return Split(tokens, tokens, reading=Reading(hides_as=7, share=0.3, length=length))


def small(**options: object) -> Callable[[], nn.Module]:
    return lambda: CNN(3, 5, hidden=(8, 16), **options)


def frozen() -> nn.Module:
    """Return a model of which two parameters are frozen and two unused."""
    model = small(norm="gn")()
    model.linear.weight.requires_grad_(False)
    model.features.conv1.bias.requires_grad_(False)
    model.unused = nn.Linear(3, 2)
    return model


class Counts(nn.Module):
    """A model that computes something else in later steps."""

    def __init__(self):
        super().__init__()
        self.model, self.steps = small(norm="gn")(), 0

    def forward(self, x):
        self.steps += 1
        return self.model(x) / self.steps


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


def make_jobs(build: Callable[[], nn.Module], sizes=SIZES, classes=None, split=images) -> list[TrainingJob]:
    """Return clients with different parameters, examples and seeds; the same at each call."""
    made = []
    for client, number in enumerate(sizes):
        torch.manual_seed(client)
        own = None if classes is None else classes[client]
        made.append(TrainingJob(model=build(), split=split(number, client), seed=100 + client, classes=own))
    return made


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_as_plain(
    ours: list[TrainingJob], results, options: TrainOptions, twins: list[TrainingJob], tolerance: float = 1e-10
) -> None:
    """Compare with plain; ``tolerance`` is relative, and for single values absolute too; 0 for equal bits."""
    expected = train_plain(twins, options)
    assert tolerance or results == expected
    for one, other in zip(ours, twins, strict=True):
        for name, value in other.model.state_dict().items():
            torch.testing.assert_close(one.model.state_dict()[name], value, rtol=tolerance, atol=tolerance)
    for result, other in zip(results, expected, strict=True):
        assert (result.examples, result.steps, result.accuracy) == (other.examples, other.steps, other.accuracy)
        assert result.loss == pytest.approx(other.loss, rel=max(tolerance, 1e-6))  # losses are in float32


def train_seated(jobs: list[TrainingJob], options: TrainOptions, most: int = 3, hall: Hall | None = None):
    """Train clients in seats, and fail where one would train alone."""
    side_by_side = Round(jobs, options, hall or Hall(torch.device("cpu"), most))
    results = side_by_side.train()
    assert not side_by_side._alone
    return results


@pytest.fixture
def split() -> Split:
    """Return 23 random images of 3 channels, classes 0 to 3 of 5."""
    return images(23, 1)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """Return a function from options to a small CNN, the same at each call."""

    def make(**options: object) -> nn.Module:
        torch.manual_seed(0)
        return CNN(3, 5, hidden=(8, 16), **options)

    return make


def train_slowly(
    model: nn.Module, split: Split, options: TrainOptions, classes: list[int] | None, seed: int, most: int = 1_000
) -> tuple[list[float], list[int], int]:
    """Train ``most`` steps as the paper says it, with nothing clever: losses, batch sizes and right answers.

    Gradients come from autograd, the update from the formula of SGD with momentum, one parameter at a time.
    """
    generator = torch.Generator().manual_seed(derive(seed, "batches"))
    received = {name: value.clone() for name, value in model.state_dict().items()}
    momentum = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    losses, sizes, correct = [], [], 0
    model.train()
    for _ in range(options.epochs):
        order = torch.randperm(len(split), generator=generator).tolist()
        batches = [order[start : start + options.batch_size] for start in range(0, len(order), options.batch_size)]
        if len(batches[-1]) == 1 and len(batches) > 1 and options.batch_size > 1:
            last = batches.pop()
            batches[-1] += last
        for rows in batches[: most - len(losses)]:
            logits = model(split.inputs[rows])
            if classes is not None and options.mask_fill != "none":
                absent = [number for number in range(logits.shape[1]) if number not in classes]
                logits = logits.clone()
                logits[:, absent] = 0.0 if options.mask_fill == "zero" else -torch.inf
            loss = F.cross_entropy(logits, split.targets[rows])
            pull = sum(((value - received[name]) ** 2).sum() for name, value in model.named_parameters())
            gradients = torch.autograd.grad(loss + options.proximal / 2 * pull, list(model.parameters()))
            norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
            scale = min(1.0, options.clip / (float(norm) + 1e-6)) if options.clip else 1.0
            with torch.no_grad():
                for (name, value), gradient in zip(model.named_parameters(), gradients, strict=True):
                    step = gradient * scale + options.weight_decay * value
                    momentum[name] = options.momentum * momentum[name] + step if len(losses) else step
                    value -= options.learning_rate * momentum[name]
            losses.append(loss.item())
            sizes.append(len(rows))
            correct += int((logits.argmax(1) == split.targets[rows]).sum())
    return losses, sizes, correct
