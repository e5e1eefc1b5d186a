"""heterofl: A Flower Baseline."""

import torch
from heterofl_flwr.nn import masked_cross_entropy
from torch import nn


def train(model: nn.Module, data, lr: float, epochs: int, batch_size: int) -> float:
    """Train with the loss of the classes that the client has; return the last loss."""
    images, labels = data
    optimizer = torch.optim.SGD(
        model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4
    )
    classes = labels.unique()
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(batch_size):
            logits = model(images[rows])
            loss = masked_cross_entropy(logits, labels[rows], classes)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return loss.item()


@torch.inference_mode()
def test(model: nn.Module, data) -> float:
    """Return the model's accuracy, with the logits of all classes."""
    images, labels = data
    return (model.eval()(images).argmax(1) == labels).float().mean().item()
