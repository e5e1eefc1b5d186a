"""A plain training loop as in the HeteroFL authors' code, the reference for the speed of this package.

In each epoch, pictures are opened, converted to tensors and normalised one at a time. Batches are lists of tensors that
are stacked. The mask of classes is built in each step. Loss and accuracy are read after each step.
"""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms  # type: ignore[import-untyped, unused-ignore]

from heterofl_flwr.nn.execution import device_of
from heterofl_flwr.training import TrainOptions

Example = Mapping[str, Tensor]


MEAN, DEVIATION = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of MNIST."""

TRANSFORM = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (DEVIATION,))])
"""Conversion of a picture to a normalised tensor."""


def to_pixels(inputs: Tensor) -> Tensor:
    """Return the bytes of pixels from normalised inputs; the inverse of ``to_inputs``."""
    return ((inputs * DEVIATION + MEAN) * 255).round().clamp(0, 255).byte()


def to_inputs(pixels: Tensor) -> Tensor:
    """Return normalised inputs from the bytes of pixels."""
    return (pixels.float() / 255 - MEAN) / DEVIATION


class Pictures(Dataset[Example]):
    """Data set of grey pictures, bytes of shape (number, 1, height, width), and their labels."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self._images, self._labels = pixels.squeeze(1).numpy(), labels.numpy()

    def __getitem__(self, index: int) -> Example:
        picture = Image.fromarray(self._images[index])
        return {"img": TRANSFORM(picture), "label": torch.tensor(self._labels[index])}

    def __len__(self) -> int:
        return len(self._labels)


def train(
    model: nn.Module,
    data: Dataset[Example],
    classes: Sequence[int],
    options: TrainOptions,
    order: Sequence[int] | None = None,
) -> tuple[float, float]:
    """Train a model in place; return the mean loss and accuracy during training.

    The pictures are shuffled unless ``order`` is set.
    """
    examples, mean_loss, accuracy = 0, 0.0, 0.0
    batches = DataLoader(data, options.batch_size, shuffle=order is None, sampler=order, collate_fn=_collate)
    device = device_of(model)
    model.train(True)
    optimizer = torch.optim.SGD(
        model.parameters(), options.learning_rate, options.momentum, weight_decay=options.weight_decay
    )
    for _ in range(options.epochs):
        for lists in batches:
            batch = {key: torch.stack(values).to(device) for key, values in lists.items()}
            optimizer.zero_grad()
            logits = model(batch["img"])
            mask = torch.zeros(logits.shape[1], device=device)
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
