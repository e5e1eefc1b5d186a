"""Small data, small models, and the slow twin of training."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Split
from heterofl_flwr.nn import CNN
from heterofl_flwr.training import TrainOptions


@pytest.fixture
def split() -> Split:
    """Return 23 random images of 3 channels, classes 0 to 3 of 5."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(23, 3, 8, 8, generator=generator)
    return Split(inputs, torch.randint(4, (23,), generator=generator))


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
