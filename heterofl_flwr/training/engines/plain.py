"""The engine ``plain``: one client, one step after the other, the same bits each time."""

from collections.abc import Sequence
from time import perf_counter

import torch
from torch import Tensor

from heterofl_flwr.core.randomness import derive
from heterofl_flwr.errors import DataError, HeteroFLError
from heterofl_flwr.nn.execution import channels_last
from heterofl_flwr.nn.loss import masked_cross_entropy
from heterofl_flwr.training.batches import epochs_of
from heterofl_flwr.training.device import lowered, seeded
from heterofl_flwr.training.engines.sgd import Descent
from heterofl_flwr.training.losses import Masking
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult


class DivergedError(HeteroFLError):
    """The loss is no longer finite."""


def train_plain(jobs: Sequence[TrainingJob], options: TrainOptions) -> list[TrainResult]:
    """Train clients one after the other (section 4: SGD with momentum, gradients clipped)."""
    return [_train(job, options) for job in jobs]


def _train(job: TrainingJob, options: TrainOptions) -> TrainResult:
    check_examples(job)
    started = perf_counter()
    with seeded(derive(job.seed, "model"), job.split.targets.device), channels_last(job.model):
        losses, sizes, correct = _run(job, options)
        job.model.zero_grad()  # frees the gradients
    return result_of(job, losses, sizes, correct, perf_counter() - started)


def _run(job: TrainingJob, options: TrainOptions) -> tuple[list[Tensor], list[int], int]:
    """Return the losses of all steps, the number of examples of each, and the number of right answers."""
    model, masking = job.model, Masking(job.classes, options.mask_fill)
    descent = Descent(model.parameters(), options)
    model.train()
    all_losses: list[Tensor] = []
    sizes: list[int] = []
    correct = 0
    for batches in epochs_of(job, options):
        losses, right = [], []
        for inputs, targets in batches:
            with lowered(options.precision, targets.device):
                logits = model(inputs)
            logits = masking(logits.float())
            loss = masked_cross_entropy(logits, targets)
            descent.take(loss)
            losses.append(loss.detach())
            right.append((logits.detach().argmax(1) == targets).flatten())
            sizes.append(targets.numel())
        all_losses.append(torch.stack(losses))
        check_finite(all_losses, options)  # once an epoch: reading a value waits for a GPU
        correct += int(torch.cat(right).sum())
    return all_losses, sizes, correct


def check_examples(job: TrainingJob) -> None:
    """Refuse a client without data."""
    if not len(job.split):
        raise DataError("there are no examples to train on")


def result_of(
    job: TrainingJob, losses: Sequence[Tensor], sizes: Sequence[int], correct: int, seconds: float
) -> TrainResult:
    """Return the result of a client from the losses and sizes of its steps and the number of right answers."""
    seen = sum(sizes)
    weights = torch.tensor(sizes, dtype=torch.float64)
    loss = float((torch.cat(list(losses)).cpu().double() * weights).sum() / seen)
    return TrainResult(len(job.split), loss, correct / seen, len(sizes), seconds)


def check_finite(losses: Sequence[Tensor], options: TrainOptions) -> None:
    """Stop where a loss of the last epoch is no number; ``losses`` has those of each epoch."""
    bad = (~losses[-1].isfinite()).nonzero()
    if len(bad):
        step = sum(map(len, losses[:-1])) + int(bad[0]) + 1
        raise DivergedError(
            f"the loss of step {step} is {float(losses[-1][bad[0]])} at learning rate {options.learning_rate:g}: "
            "lower it or clip the gradient; with mask_fill=-inf every target must be among the classes; and the "
            "inputs must be finite"
        )
