"""A client's work written the plain way, as the authors of HeteroFL write it: what our speed is measured against.

Pictures are opened, turned into tensors and normalised one at a time, each time anew; batches are lists that are
stacked; the mask of classes is built in each step; loss and accuracy are read after each step.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

from heterofl_flwr.nn.static_norm import batch_norms
from heterofl_flwr.training import TrainOptions

Example = Mapping[str, Tensor]
Examples = Mapping[str, list[Tensor]]


@dataclass(frozen=True, slots=True)
class Look:
    """How the pictures of a data set are normalised, and whether they are varied."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    varied: bool = False

    def transform(self) -> transforms.Compose:
        """Return what turns one picture into a tensor."""
        vary = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if self.varied else []
        return transforms.Compose([*vary, transforms.ToTensor(), transforms.Normalize(self.mean, self.deviation)])

    def pixels(self, inputs: Tensor) -> Tensor:
        """Return normalised inputs as the bytes they were made of."""
        deviation, mean = torch.tensor(self.deviation).view(-1, 1, 1), torch.tensor(self.mean).view(-1, 1, 1)
        return ((inputs * deviation + mean) * 255).round().clamp(0, 255).byte()

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return bytes as normalised inputs."""
        deviation, mean = torch.tensor(self.deviation).view(-1, 1, 1), torch.tensor(self.mean).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / deviation


MNIST = Look((0.1307,), (0.3081,))
CIFAR10 = Look((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), varied=True)


class Pictures(Dataset[Example]):
    """Pictures (number, channels, height, width) in bytes, with their labels."""

    def __init__(self, pixels: Tensor, labels: Tensor, look: Look) -> None:
        self._images = pixels.movedim(1, -1).squeeze(-1).contiguous().numpy()
        self._labels = labels.numpy()
        self._transform = look.transform()

    def __getitem__(self, index: int) -> Example:
        picture = Image.fromarray(self._images[index])
        return {"img": self._transform(picture), "label": torch.tensor(self._labels[index])}

    def __len__(self) -> int:
        return len(self._labels)


class Metrics:
    """Means over examples, read from each output at once."""

    def __init__(self) -> None:
        self.examples, self.loss, self.accuracy = 0, 0.0, 0.0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        number = len(labels)
        right = (logits.topk(1, 1).indices == labels.view(-1, 1)).float().sum()
        self.examples += number
        self.loss += number * (loss.item() - self.loss) / self.examples
        self.accuracy += (right.item() - number * self.accuracy) / self.examples


def loader(data: Dataset[Example], batch_size: int, order: Sequence[int] | None = None) -> DataLoader[Example]:
    """Return batches, shuffled where no order is given."""
    return DataLoader(data, batch_size, shuffle=order is None, sampler=order, collate_fn=_collate)


def train(model: nn.Module, batches: Iterable[Examples], classes: Sequence[int], options: TrainOptions) -> Metrics:
    """Train a model in place."""
    metrics = Metrics()
    model.train(True)
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, options.momentum, weight_decay=options.weight_decay
    )
    for _ in range(options.epochs):
        for examples in batches:
            batch = {**_stack(examples), "classes": torch.tensor(classes)}
            optimizer.zero_grad()
            output = _forward(model, batch)
            output["loss"].backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip or 0.0)
            optimizer.step()
            metrics.add(output["loss"], output["score"], batch["label"])
    return metrics


@torch.no_grad()
def with_moments(model: nn.Module, batches: Iterable[Examples]) -> nn.Module:
    """Return a copy whose batch norm layers hold cumulative averages of the batches' moments."""
    tracked = copy.deepcopy(model)
    for layer in batch_norms(tracked).values():
        layer.track_running_stats, layer.momentum = True, None
        layer.running_mean, layer.running_var = torch.zeros(layer.num_features), torch.ones(layer.num_features)
        layer.num_batches_tracked = torch.tensor(0)
    tracked.train(True)
    for examples in batches:
        _forward(tracked, _stack(examples))
    return tracked


@torch.no_grad()
def test(model: nn.Module, batches: Iterable[Examples], metrics: Metrics, classes: Sequence[int] | None) -> None:
    """Add a model's results; with classes, the others' logits are masked."""
    model.train(False)
    for examples in batches:
        batch = _stack(examples)
        if classes is not None:
            batch["classes"] = torch.tensor(classes)
        output = _forward(model, batch)
        metrics.add(output["loss"], output["score"], batch["label"])


def _collate(examples: Sequence[Example]) -> Examples:
    return {key: [example[key] for example in examples] for key in examples[0]}


def _stack(examples: Examples) -> dict[str, Tensor]:
    return {key: torch.stack(values) for key, values in examples.items()}


def _forward(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    logits: Tensor = model(batch["img"])
    if "classes" in batch:
        mask = torch.zeros(logits.shape[1])
        mask[batch["classes"]] = 1
        logits = logits.masked_fill(mask == 0, 0)
    return {"score": logits, "loss": F.cross_entropy(logits, batch["label"])}
