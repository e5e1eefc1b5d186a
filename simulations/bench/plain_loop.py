"""A client's training written the plain way, as the authors of HeteroFL write it: what our speed is measured against.

Pictures are opened, turned into tensors and normalised one at a time, each time anew; batches are lists that are
stacked; the mask of classes is built in each step; loss and accuracy are read after each step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

from heterofl_flwr.training import TrainOptions

Example = Mapping[str, Tensor]


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


def train(
    model: nn.Module,
    data: Dataset[Example],
    classes: Sequence[int],
    options: TrainOptions,
    order: Sequence[int] | None = None,
) -> tuple[float, float]:
    """Train a model in place, on shuffled pictures where no order is given; return mean loss and accuracy as seen."""
    examples, mean_loss, accuracy = 0, 0.0, 0.0
    batches = DataLoader(data, options.batch_size, shuffle=order is None, sampler=order, collate_fn=_collate)
    model.train(True)
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, options.momentum, weight_decay=options.weight_decay
    )
    for _ in range(options.epochs):
        for lists in batches:
            batch = {key: torch.stack(values) for key, values in lists.items()}
            optimizer.zero_grad()
            logits = model(batch["img"])
            mask = torch.zeros(logits.shape[1])
            mask[torch.tensor(classes)] = 1
            logits = logits.masked_fill(mask == 0, 0)
            loss = F.cross_entropy(logits, batch["label"])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip or 0.0)
            optimizer.step()
            number = len(batch["label"])
            right = (logits.topk(1, 1).indices == batch["label"].view(-1, 1)).float().sum()
            examples += number
            mean_loss += number * (loss.item() - mean_loss) / examples
            accuracy += (right.item() - number * accuracy) / examples
    return mean_loss, accuracy


def _collate(examples: Sequence[Example]) -> Mapping[str, list[Tensor]]:
    return {key: [example[key] for example in examples] for key in examples[0]}
